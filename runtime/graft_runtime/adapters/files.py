"""The two files of an adapter: config and header read and checked, no weight touched. Holds no torch."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from graft_runtime.adapters.foreign import ungathered, what_else
from graft_runtime.adapters.keys import highest_rank
from graft_runtime.adapters.methods.recipe import Recipe
from graft_runtime.adapters.methods.registry import read_recipe
from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.remap import plain_names
from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.adapters.tensors import TensorSpan, read_header
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
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
    """Under the names that `save_pretrained` gives them."""
    version: tuple[int, ...]
    """Of the file that the header was read from: the weights are read from the same one."""
    facts: AdapterFacts
    """As far as they are known before it is compiled."""


def facts_of(recipe: Recipe, parts: Sequence[Part], remapped: str | None) -> AdapterFacts:
    """Return what config and header say of an adapter.

    Args:
        recipe: of its config.
        parts: of its tensors.
        remapped: see `AdapterFacts`.
    """
    late = {DeltaKind.INVOCATION} if recipe.invocation else set()
    return AdapterFacts(
        method=recipe.method,
        rank=highest_rank(parts),
        module_count=len({part.path for part in parts}),
        deltas=frozenset(kind for part in parts for kind in part.deltas) | late,
        remapped=remapped,
    )


def read_adapter_files(directory: Path, *, name: str, max_rank: int) -> AdapterFiles:
    """Check config and header; one error lists every fault of its kind.

    Args:
        directory: holds the adapter as PEFT saves it.
        name: how errors call it.
        max_rank: the pool's limit.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile, Corrupt, UnsupportedMethod, InvalidConfig, RankTooHigh.
    """
    _check_directory(directory, name)
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
        weight_bytes, version = os.fstat(file.fileno()).st_size, _version(file)
        tensors = read_header(file, f"{WEIGHTS_FILE} of adapter `{name}`")
    if shards := ungathered(tensors):
        raise GraftError(
            ErrorCode.CORRUPT,
            f"adapter `{name}` lacks the values of {len(shards)} of its {len(tensors)} tensors: they are empty or "
            "flat, as sharded training leaves them that were not gathered before they were saved",
            details=shown([f"{tensor}: {tensors[tensor].shape}" for tensor in shards]),
            hint="gather and save it again: `stage3_gather_16bit_weights_on_model_save` of DeepSpeed's ZeRO-3, "
            "`fsdp_state_dict_type: FULL_STATE_DICT` of FSDP",
        )
    tensors, remapped = plain_names(tensors)
    parts = recipe.parts(tensors)
    facts = facts_of(recipe, parts, remapped)
    files = AdapterFiles(directory, name, recipe, parts, config_bytes + weight_bytes, tensors, version, facts)
    if facts.rank > max_rank:
        raise _rank_too_high(files, max_rank)
    return files


def _rank_too_high(files: AdapterFiles, max_rank: int) -> GraftError:
    highest = max(files.parts, key=lambda part: part.rank)
    why = highest.why_rank
    return GraftError(
        ErrorCode.RANK_TOO_HIGH,
        f"adapter `{files.name}` has rank {files.facts.rank}, the pool takes at most {max_rank} (spec.engine.maxRank)",
        details=[f"{highest.path}: {why}"] if why else [],
        hint=f"train with {'a lower r' if why else f'r ≤ {max_rank}'} or raise spec.engine.maxRank",
    )


def open_weights(directory: Path, name: str, *, version: tuple[int, ...] | None = None) -> BinaryIO:
    """Open the safetensors file as a regular file and through no link.

    Args:
        directory: of the adapter.
        name: how errors call it.
        version: that the file must still be.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile, Corrupt.
    """
    file = _open(directory / WEIGHTS_FILE, name)
    if version not in (None, _version(file)):
        file.close()
        raise GraftError(ErrorCode.CORRUPT, f"{WEIGHTS_FILE} of adapter `{name}` was replaced after it was checked")
    return file


def _version(file: BinaryIO) -> tuple[int, ...]:
    """Return which file is open, and since when the file is as it is."""
    found = os.fstat(file.fileno())
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns


def check_present(names: Collection[str], name: str, folders: Sequence[str] = ()) -> None:
    """Check that a directory is an adapter's, by the names in it.

    Args:
        names: what the directory holds.
        name: how errors call the adapter.
        folders: those in the directory that hold an adapter, for the hint.

    Raises:
        GraftError: NotAnAdapter, UnsafeFile.
    """
    pickles = [file for file in PICKLE_FILES if file in names]
    if pickles and WEIGHTS_FILE not in names:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"adapter `{name}` has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            hint="save it again with save_pretrained(..., safe_serialization=True), PEFT's default since 0.5",
        )
    missing = [file for file in (CONFIG_FILE, WEIGHTS_FILE) if file not in names]
    if missing:
        why, hint = what_else(names) or (f"{' and '.join(missing)} missing", None)
        raise _not_an_adapter(name, why, folders, hint)


def _check_directory(directory: Path, name: str) -> None:
    try:
        present = set(os.listdir(directory))
    except OSError as error:
        raise _not_an_adapter(name, f"its directory can't be read: {error.strerror}") from None
    inside = (
        () if CONFIG_FILE in present else (entry for entry in present if (directory / entry / CONFIG_FILE).is_file())
    )
    check_present(present, name, sorted(inside))


def _not_an_adapter(name: str, why: str, folders: Sequence[str] = (), hint: str | None = None) -> GraftError:
    return GraftError(
        ErrorCode.NOT_AN_ADAPTER,
        f"`{name}` is not an adapter: {why}",
        details=shown([f"the folder {folder!r} in it holds an adapter" for folder in folders]),
        hint="let the URI end in that folder"
        if folders
        else hint or "point the URI at what peft's save_pretrained() wrote",
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
