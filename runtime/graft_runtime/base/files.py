"""The files of a base model's checkpoint, before anybody loads it. Holds no torch."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

from graft_runtime.adapters.strict_json import parse_object
from graft_runtime.errors import ErrorCode, GraftError, shown

MAX_CONFIG_BYTES = 16 << 20
MAX_INDEX_BYTES = 64 << 20
CONFIG_FILE = "config.json"
SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
WEIGHT_FILES = (SINGLE_FILE, INDEX_FILE)
PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt")


def read_config(directory: Path, name: str) -> bytes:
    """Return the text of the config.json of a base model.

    Args:
        directory: of the checkpoint.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel.
    """
    try:
        with (directory / CONFIG_FILE).open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise not_a_model(name, f"its config.json can't be read: {error.strerror}") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise not_a_model(name, f"its config.json has over {MAX_CONFIG_BYTES} bytes")
    return text


def read_object(path: Path, name: str) -> dict[str, Any]:
    """Return the JSON object in a file beside or below the config.json of a base model.

    Args:
        path: of the file.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel.
    """
    return parse_object(read_text(path, name), f"{path.name} of base model `{name}`", ErrorCode.NOT_A_MODEL)


def read_text(path: Path, name: str) -> bytes:
    """Return what is in such a file. Raises GraftError: NotAModel."""
    shown = f"{path.parent.name}/{path.name}"
    try:
        with path.open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        hint = "copy the files and folders of the model whole, as they are and not as links"
        raise not_a_model(name, f"its {shown} can't be read: {error.strerror}", hint) from None
    if len(text) > MAX_CONFIG_BYTES:
        raise not_a_model(name, f"its {shown} has over {MAX_CONFIG_BYTES} bytes")
    return text


def check_present(names: Collection[str], name: str, folders: Sequence[str] = ()) -> None:
    """Check that a directory is a base model's, by the names in it.

    Args:
        names: what the directory holds.
        name: how errors call the base model.
        folders: those in the directory that hold a model, for the hint.

    Raises:
        GraftError: NotAModel, UnsafeFile.
    """
    weights = [file for file in WEIGHT_FILES if file in names]
    pickles = sorted(file for file in names if file.endswith(PICKLE_SUFFIXES))
    if CONFIG_FILE in names and pickles and not weights:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"base model `{name}` has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            hint="save it again with save_pretrained(), which writes model.safetensors",
            field="spec.baseModel.uri",
        )
    missing = [CONFIG_FILE] if CONFIG_FILE not in names else []
    missing += [] if weights else [f"{SINGLE_FILE} (or {INDEX_FILE})"]
    if missing:
        raise not_a_model(name, f"{' and '.join(missing)} missing", folders=folders)


def check_weights(directory: Path, name: str) -> None:
    """Check that a directory is a base model's.

    Args:
        directory: of the checkpoint.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel, UnsafeFile.
    """
    try:
        present = {path.name for path in directory.iterdir()}
    except OSError as error:
        raise not_a_model(name, f"its directory can't be read: {error.strerror}") from None
    check_present(present, name)


def weight_files(base: Path) -> list[str]:
    """Return the safetensors files of the checkpoint, as Transformers picks them."""
    if (base / SINGLE_FILE).exists():
        return [SINGLE_FILE]
    text = (base / INDEX_FILE).read_bytes()[:MAX_INDEX_BYTES]
    index = parse_object(text, f"{INDEX_FILE} of base model `{base.name}`", ErrorCode.NOT_A_MODEL)
    names = index.get("weight_map")
    found = sorted({str(name) for name in names.values()}) if isinstance(names, dict) else []
    if not found or any(Path(name).name != name for name in found):
        raise GraftError(ErrorCode.NOT_A_MODEL, f"{INDEX_FILE} of base model `{base.name}` names no files beside it")
    return found


def not_a_model(name: str, why: str, hint: str | None = None, folders: Sequence[str] = ()) -> GraftError:
    """Return why a base model can't be loaded."""
    there = "let the URI end in that folder" if folders else None
    return GraftError(
        ErrorCode.NOT_A_MODEL,
        f"base model `{name}` can't be loaded: {why}",
        details=shown([f"the folder {folder!r} in it holds a model" for folder in folders]),
        hint=hint or there or "point spec.baseModel.uri at a Hugging Face checkpoint of a text model",
        field="spec.baseModel.uri",
    )
