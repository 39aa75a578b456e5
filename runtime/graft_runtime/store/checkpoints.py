"""What belongs to a checkpoint, and the digest that names its bytes. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Literal

from graft_runtime.adapters.files import CONFIG_FILE, PICKLE_FILES, WEIGHTS_FILE
from graft_runtime.contract.checkpoints import ADAPTER_FILE_PATTERNS, MODEL_FILE_PATTERNS
from graft_runtime.errors import ErrorCode, GraftError, shown

Kind = Literal["adapter", "model"]

MODEL_PICKLE_PATTERNS = ("*.bin", "*.pt", "*.pth", "*.ckpt")


@dataclass(frozen=True)
class FileRecord:
    """One file of a checkpoint."""

    path: str
    size: int
    """Bytes."""
    sha256: str
    """Hex digits."""


def digest_of(files: Iterable[FileRecord]) -> str:
    """The digest of a checkpoint: `sha256:` and the hash over the sorted lines `path size sha256`."""
    lines = sorted(f"{file.path} {file.size} {file.sha256}\n" for file in files)
    return "sha256:" + hashlib.sha256("".join(lines).encode()).hexdigest()


def select_files(names: Sequence[str], kind: Kind, uri: str, folders: Sequence[str] = ()) -> list[str]:
    """The files of a checkpoint among the names in its directory.

    Args:
        names: what the directory holds.
        kind: what it ought to be.
        uri: how errors call it.
        folders: those in it that hold a checkpoint, for the hint.

    Raises:
        GraftError: NotAnAdapter, NotAModel, UnsafeFile.
    """
    patterns = ADAPTER_FILE_PATTERNS if kind == "adapter" else MODEL_FILE_PATTERNS
    selected = [name for name in names if any(fnmatchcase(name, pattern) for pattern in patterns)]
    check = _check_adapter if kind == "adapter" else _check_model
    check(names, selected, uri, [f"the folder {folder!r} in it holds one" for folder in folders])
    return selected


def config_file(kind: Kind) -> str:
    """The file that makes a directory a checkpoint."""
    return CONFIG_FILE if kind == "adapter" else "config.json"


def _check_adapter(names: Sequence[str], selected: Sequence[str], uri: str, folders: list[str]) -> None:
    pickles = [name for name in PICKLE_FILES if name in names]
    if pickles and WEIGHTS_FILE not in selected:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"the adapter at `{uri}` has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            hint="save it again with save_pretrained(..., safe_serialization=True), PEFT's default since 0.5",
        )
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if file not in selected]
    if missing:
        raise GraftError(
            ErrorCode.NOT_AN_ADAPTER,
            f"`{uri}` is not an adapter: {' and '.join(missing)} missing",
            details=shown(folders),
            hint="let the URI end in that folder" if folders else "point it at what peft's save_pretrained() wrote",
        )


def _check_model(names: Sequence[str], selected: Sequence[str], uri: str, folders: list[str]) -> None:
    if "config.json" in selected and any(name.endswith(".safetensors") for name in selected):
        return
    pickles = [name for name in names if any(fnmatchcase(name, pattern) for pattern in MODEL_PICKLE_PATTERNS)]
    if "config.json" in selected and pickles:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"the model at `{uri}` has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            hint="save it again as safetensors: from_pretrained(...).save_pretrained(...)",
        )
    raise GraftError(
        ErrorCode.NOT_A_MODEL,
        f"`{uri}` is not a Hugging Face model: config.json or *.safetensors missing",
        details=shown(folders),
        hint="let the URI end in that folder" if folders else "point it at what save_pretrained() wrote",
    )
