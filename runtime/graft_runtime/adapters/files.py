"""The two files of an adapter: config and header read and checked, no weight touched. Holds no torch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from graft_runtime.adapters.keys import highest_rank
from graft_runtime.adapters.methods.recipe import Recipe
from graft_runtime.adapters.methods.registry import read_recipe
from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.adapters.tensors import TensorSpan, read_header
from graft_runtime.errors import ErrorCode, GraftError, shown

CONFIG_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"
PICKLE_FILES = ("adapter_model.bin", "adapter_model.pt", "adapter_model.pth")
MAX_CONFIG_BYTES = 1 << 20


@dataclass(frozen=True)
class AdapterFiles:
    """A checked adapter checkpoint; its weights are still on the disk."""

    directory: Path
    name: str
    """How errors call it."""
    recipe: Recipe
    parts: Sequence[Part]
    bytes: int
    """Of both files."""
    tensors: Mapping[str, TensorSpan]

    @property
    def method(self) -> str:
        """PEFT's name of the method: `LORA`."""
        return self.recipe.method

    @property
    def rank(self) -> int:
        """The highest of its modules."""
        return highest_rank(self.parts)


def read_adapter_files(directory: Path, *, name: str, max_rank: int) -> AdapterFiles:
    """Checks config and header; one error lists every fault of its kind.

    Args:
        directory: holds the adapter as PEFT saves it.
        name: how errors call it.
        max_rank: the pool's limit.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile, Corrupt, UnsupportedMethod, InvalidConfig, RankTooHigh.
    """
    _check_present(directory, name)
    with _open(directory / CONFIG_FILE, name) as file:
        config_bytes = os.fstat(file.fileno()).st_size
        text = file.read(MAX_CONFIG_BYTES + 1)
    if len(text) > MAX_CONFIG_BYTES:
        raise GraftError(
            ErrorCode.INVALID_CONFIG,
            f"{CONFIG_FILE} of adapter `{name}` has {config_bytes} bytes, expected at most {MAX_CONFIG_BYTES}",
        )
    raw = parse_object(text, f"{CONFIG_FILE} of adapter `{name}`", ErrorCode.INVALID_CONFIG)
    recipe = read_recipe(raw, name)
    with open_weights(directory, name) as file:
        weight_bytes = os.fstat(file.fileno()).st_size
        tensors = read_header(file, f"{WEIGHTS_FILE} of adapter `{name}`")
    files = AdapterFiles(directory, name, recipe, recipe.parts(tensors), config_bytes + weight_bytes, tensors)
    if files.rank > max_rank:
        raise GraftError(
            ErrorCode.RANK_TOO_HIGH,
            f"adapter `{name}` has rank {files.rank}, the pool takes at most {max_rank} (spec.engine.maxRank)",
            hint=f"train with r ≤ {max_rank} or raise spec.engine.maxRank",
        )
    return files


def open_weights(directory: Path, name: str) -> BinaryIO:
    """The safetensors file, opened as a regular file and through no link.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile.
    """
    return _open(directory / WEIGHTS_FILE, name)


def _check_present(directory: Path, name: str) -> None:
    try:
        present = set(os.listdir(directory))
    except OSError as error:
        raise _not_an_adapter(name, f"its directory can't be read: {error.strerror}") from None
    pickles = [file for file in PICKLE_FILES if file in present]
    if pickles and WEIGHTS_FILE not in present:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"adapter `{name}` has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            hint="save it again with save_pretrained(..., safe_serialization=True), PEFT's default since 0.5",
        )
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if file not in present]
    if missing:
        inside = sorted(entry for entry in present if (directory / entry / CONFIG_FILE).is_file())
        raise _not_an_adapter(name, f"{' and '.join(missing)} missing", inside)


def _not_an_adapter(name: str, why: str, inside: list[str] | None = None) -> GraftError:
    return GraftError(
        ErrorCode.NOT_AN_ADAPTER,
        f"`{name}` is not an adapter: {why}",
        details=shown([f"the folder {folder!r} in it holds an adapter" for folder in inside or []]),
        hint="let the URI end in that folder" if inside else "point the URI at what peft's save_pretrained() wrote",
    )


def _open(path: Path, name: str) -> BinaryIO:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        if error.errno == errno.ELOOP:
            raise GraftError(ErrorCode.UNSAFE_FILE, f"{path.name} of adapter `{name}` is a symbolic link") from None
        raise _not_an_adapter(name, f"{path.name} can't be read: {error.strerror}") from None
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise GraftError(ErrorCode.UNSAFE_FILE, f"{path.name} of adapter `{name}` is not a regular file")
    return os.fdopen(descriptor, "rb")
