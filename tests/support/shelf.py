"""A mounted source with small adapters, for tests that copy and never load them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graft_runtime.contract.config import SourceMount
from graft_runtime.store.sources import Sources

MOUNT = SourceMount(name="shelf", kind="claim")
WEIGHTS_BYTES = 1000
ADAPTER_BYTES = WEIGHTS_BYTES + 2


def write_adapter(directory: Path, content: str) -> None:
    """Write an adapter of ADAPTER_BYTES whose weights repeat one character, beside a file that is not part of it."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "adapter_config.json").write_text("{}")
    (directory / "adapter_model.safetensors").write_bytes(content.encode() * WEIGHTS_BYTES)
    (directory / "README.md").write_text("not part of the digest")


def filled(shelf: Path, **options: Any) -> Sources:
    """Write the adapters `a`, `b` and `c`; return the sources that have them at `pvc://shelf`."""
    for name in ("a", "b", "c"):
        write_adapter(shelf / name, name)
    return Sources((MOUNT,), {"shelf": shelf}, **options)


def embedder() -> dict[str, bytes]:
    """Return the files of a base model with sentence-transformers' modules, as far as the store looks."""
    return {
        "config.json": b"{}",
        "model.safetensors": b"weights",
        "modules.json": b"[]",
        "1_Pooling/config.json": b'{"pooling_mode": "mean"}',
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"more weights",
    }
