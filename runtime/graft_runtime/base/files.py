"""The files of a base model's checkpoint, before anybody loads it. Holds no torch."""

from __future__ import annotations

from pathlib import Path

from graft_runtime.errors import ErrorCode, GraftError

MAX_CONFIG_BYTES = 16 << 20
WEIGHT_FILES = ("model.safetensors", "model.safetensors.index.json")


def read_config(directory: Path, name: str) -> bytes:
    """The text of its config.json.

    Args:
        directory: of the checkpoint.
        name: how errors call the base model.

    Raises:
        GraftError: NotAModel.
    """
    try:
        with (directory / "config.json").open("rb") as file:
            text = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise not_a_model(name, f"its config.json can't be read: {error.strerror}") from None
    if len(text) > MAX_CONFIG_BYTES:
        raise not_a_model(name, f"its config.json has over {MAX_CONFIG_BYTES} bytes")
    return text


def check_weights(directory: Path, name: str) -> None:
    """That its weights are there, in safetensors.

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
    if any(file in present for file in WEIGHT_FILES):
        return
    pickles = sorted(file for file in present if file.endswith((".bin", ".pt", ".pth", ".ckpt")))
    if pickles:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"base model `{name}` has its weights in {pickles[0]}, a pickle, which can run code when it is opened",
            hint="save it again with save_pretrained(), which writes model.safetensors",
            field="spec.baseModel.uri",
        )
    raise not_a_model(name, f"neither {WEIGHT_FILES[0]} nor {WEIGHT_FILES[1]} is there")


def not_a_model(name: str, why: str, hint: str | None = None) -> GraftError:
    """Why a base model can't be loaded."""
    return GraftError(
        ErrorCode.NOT_A_MODEL,
        f"base model `{name}` can't be loaded: {why}",
        hint=hint or "point spec.baseModel.uri at a Hugging Face checkpoint of a text model",
        field="spec.baseModel.uri",
    )
