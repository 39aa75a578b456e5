"""Where a checkpoint keeps what the model calls its parameters."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import torch

from graft_runtime.adapters.content import TORCH_DTYPES
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.tensors import TensorSpan, read_header
from graft_runtime.model.modules import BaseModules


@dataclass(frozen=True)
class Place:
    """Where a parameter of a module lies in a file."""

    file: Path
    span: TensorSpan
    transposed: bool

    def read(self) -> torch.Tensor:
        """Read the parameter; a weight is [output features, input features], whichever way the file keeps it."""
        with self.file.open("rb") as file:
            data = bytearray(os.pread(file.fileno(), self.span.end - self.span.begin, self.span.begin))
        tensor = torch.frombuffer(data, dtype=TORCH_DTYPES[self.span.dtype]).reshape(self.span.shape)
        return tensor.T if self.transposed else tensor

    def write(self, file: BinaryIO, tensor: torch.Tensor) -> None:
        """Write the tensor over what the file holds in this place."""
        kept = (tensor.T if self.transposed else tensor).contiguous()
        file.seek(self.span.begin)
        file.write(kept.view(torch.uint8).numpy().tobytes())


Spans = Mapping[str, tuple[Path, TensorSpan]]
"""Name of a tensor → the file that holds it, and where."""


@dataclass(frozen=True)
class StoredModule:
    """A module of the base whose parameters are read when they are asked for."""

    places: Mapping[str, Place]

    @property
    def weight(self) -> torch.Tensor:
        """Return the weight: [output features, input features], or [rows, features] of an embedding."""
        return self.places["weight"].read()

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias: [output features], or None where there is no bias."""
        return self.places["bias"].read() if "bias" in self.places else None

    @property
    def quantised(self) -> bool:
        """Return False: a file holds full weights."""
        return False


def read_spans(base: Path, files: Sequence[str]) -> Spans:
    """Find every tensor of these files of a checkpoint. Raises GraftError: Corrupt."""
    spans: dict[str, tuple[Path, TensorSpan]] = {}
    for name in files:
        with (base / name).open("rb") as file:
            header = read_header(file, f"{name} of base model `{base.name}`")
        spans |= {tensor: (base / name, span) for tensor, span in header.items()}
    return spans


def find_place(path: str, parameter: str, spans: Spans, modules: BaseModules, layout: BaseLayout) -> Place | str | None:
    """Return where a parameter lies, or what is wrong with the parameter.

    Returns None for a parameter that is tied to another and lies where the other does.
    """
    module = modules(path)
    tensor = module.parameter(parameter)
    found = next((spans[name] for name in stored_names(f"{path}.{parameter}", layout) if name in spans), None)
    if found is None:
        tied = parameter == "weight" and path in layout.ties.values()
        return None if tied else f"{path}.{parameter}: the checkpoint has no tensor of this name"
    if found[1].shape != tuple(tensor.shape) or found[1].dtype not in TORCH_DTYPES:
        return f"{path}.{parameter}: {found[1].dtype} {found[1].shape}, the model has {tuple(tensor.shape)}"
    return Place(*found, transposed=module.transposed(parameter))


def stored_names(name: str, layout: BaseLayout) -> Iterator[str]:
    """Yield the names of a parameter in checkpoints: the model's, the bare model's, those of earlier Transformers.

    The larger model's too, where the checkpoint is of one.
    """
    yield name
    yield name.removeprefix(layout.wrapper + ".")
    yield f"{layout.wrapper}.{name}"
    for old, new in layout.former.items():
        if name == new or name.startswith(new + "."):
            yield old + name[len(new) :]
    for outer, inner in layout.inside.items():
        if layout.whole is not None and name.startswith(inner + "."):
            yield from stored_names(outer + name[len(inner) :], layout.whole)
