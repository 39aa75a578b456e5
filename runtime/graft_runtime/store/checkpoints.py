"""What belongs to a checkpoint, and the digest that names its bytes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from typing import Literal

from graft_runtime.adapters import files as adapter_files
from graft_runtime.base import files as base_files
from graft_runtime.contract.checkpoints import ADAPTER_FILE_PATTERNS, MODEL_FILE_PATTERNS, CheckpointFile, matches

Kind = Literal["adapter", "model"]


def digest_of(files: Iterable[CheckpointFile]) -> str:
    """Return the digest of a checkpoint: `sha256:` and the hash over the sorted lines `path size sha256`."""
    lines = sorted(f"{file.path} {file.size} {file.sha256}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def select_files(names: Sequence[str], kind: Kind, uri: str, folders: Sequence[str] = ()) -> list[str]:
    """Choose the files of a checkpoint among the paths in its directory.

    Args:
        names: what the directory holds, and its folders of modules.
        kind: what it ought to be.
        uri: how errors call it.
        folders: those in it that hold a checkpoint, for the hint.

    Raises:
        GraftError: NotAnAdapter, NotAModel, UnsafeFile.
    """
    patterns = ADAPTER_FILE_PATTERNS if kind == "adapter" else MODEL_FILE_PATTERNS
    selected = [name for name in names if matches(name, patterns)]
    check = adapter_files.check_present if kind == "adapter" else base_files.check_present
    check(names, uri, folders)
    return selected


def config_file(kind: Kind) -> str:
    """Return the name of the file that makes a directory a checkpoint."""
    return adapter_files.CONFIG_FILE if kind == "adapter" else base_files.CONFIG_FILE
