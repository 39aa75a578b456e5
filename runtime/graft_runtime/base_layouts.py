"""The layouts of base models that were looked at before, kept as files: to make a layout takes torch, and seconds."""

from __future__ import annotations

import hashlib
import importlib.metadata
import os
import tempfile
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.contract import Task
from graft_runtime.errors import ErrorCode, GraftError

_JSON = TypeAdapter(BaseLayout)
_MAKERS = ("adapters/layout.py", "model/layout.py", "model/load.py", "model/tasks.py")
"""What a layout depends on, beside Transformers and the base."""


def layout_of_checkpoint(base: Path, *, name: str, task: Task | None = None) -> BaseLayout:
    """What a base model offers to adapters; no weight of it is read.

    Args:
        base: a checkpoint.
        name: how errors call it.
        task: what it is to be loaded for; None: what its config.json says.

    Raises:
        GraftError: what loading it raises before a weight is read.
    """
    kept = layouts_directory() / f"{_key(base, name, task)}.json"
    found = _read(kept)
    if found is None:
        from graft_runtime.model.stored import stored_layout  # noqa: PLC0415 - it needs torch

        found = stored_layout(base, name=name, task=task)
        _keep(found, kept)
    return replace(found, name=name)


def layouts_directory() -> Path:
    """`$XDG_CACHE_HOME/graft/layouts`, else `~/.cache/graft/layouts`. It need not exist yet."""
    cache = os.environ.get("XDG_CACHE_HOME")
    return (Path(cache) if cache else Path.home() / ".cache") / "graft" / "layouts"


def _key(base: Path, name: str, task: Task | None) -> str:
    """Everything that a layout, or the refusal to make it, depends on."""
    try:
        config, files = (base / "config.json").read_bytes(), sorted(os.listdir(base))
    except OSError as error:
        raise GraftError(
            ErrorCode.NOT_A_MODEL,
            f"base model `{name}` can't be loaded: its config.json can't be read: {error.strerror}",
            hint="point --base at a Hugging Face checkpoint",
        ) from None
    makers = [(Path(__file__).parent / file).read_bytes() for file in _MAKERS]
    named = [str(task), importlib.metadata.version("transformers"), *files]
    digest = hashlib.sha256()
    for part in (config, *makers, *(text.encode() for text in named)):
        digest.update(hashlib.sha256(part).digest())
    return digest.hexdigest()


def _read(kept: Path) -> BaseLayout | None:
    try:
        return _JSON.validate_json(kept.read_bytes(), strict=True)
    except (OSError, ValidationError):
        return None


def _keep(layout: BaseLayout, kept: Path) -> None:
    with suppress(OSError):  # a home that can't be written to costs time, no more
        kept.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        with tempfile.NamedTemporaryFile(dir=kept.parent, delete=False) as file:
            file.write(_JSON.dump_json(layout))
        Path(file.name).replace(kept)
