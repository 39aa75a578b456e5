"""compile(adapter, base) → deltas: reads the weights, folds the scale in, and lets only finite values through."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

import torch

from graft_runtime.adapters.deltas import CompiledAdapter, ModuleDelta
from graft_runtime.adapters.files import AdapterFiles, open_weights
from graft_runtime.adapters.fit import fit
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.part import BaseModule, Part
from graft_runtime.adapters.tensors import TensorSpan
from graft_runtime.errors import ErrorCode, GraftError, shown

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
}

BaseModules = Callable[[str], BaseModule]
"""The modules of a base by their path."""


def compile_adapter(
    files: AdapterFiles, layout: BaseLayout, modules: BaseModules, *, dtype: torch.dtype, device: torch.device
) -> CompiledAdapter:
    """Reads the weights of a checked adapter and fits them to the base.

    Scales are folded into B in float32, and only then A and B are cast to the model's dtype. PEFT keeps them in float32
    and casts the activations instead: the same in float32, and the same up to rounding in half precision, at half the
    memory.

    Args:
        files: checked config and header.
        layout: of the base model.
        modules: of the base model; read, never written.
        dtype: of the model's weights.
        device: of the model's weights.

    Raises:
        GraftError: BaseMismatch, ModuleMissing, ShapeMismatch, Corrupt, NoEffect, UnsafeFile, UnsupportedMethod.
    """
    values = Values(files.name)
    deltas: dict[str, ModuleDelta] = {}
    fitted = fit(files.parts, layout, name=files.name, base_model=files.recipe.base_model)
    for path, delta in compile_parts(files, fitted, modules, device, values):
        cast = values.cast(path, delta, dtype)
        deltas[path] = _both(files.name, path, deltas[path], cast) if path in deltas else cast
    values.check(any(delta.changes for delta in deltas.values()))
    return CompiledAdapter(files.method, files.rank, deltas, files.recipe.invocation, _vocabulary(fitted, layout))


def compile_parts(
    files: AdapterFiles, layout: BaseLayout, modules: BaseModules, device: torch.device, values: Values
) -> Iterator[tuple[str, ModuleDelta]]:
    """What each part does to a module, in float32, part by part: only one is in memory at a time.

    Args:
        files: checked config and header.
        layout: as `fit` returns it.
        modules: of the base model.
        device: of the deltas.
        values: takes note of what is not finite.
    """
    with open_weights(files.directory, files.name) as file:
        for part in files.parts:
            source = _Source(part, layout, modules, file, files, device, values)
            yield from part.compile(source).items()


@dataclass(frozen=True)
class _Source:
    """What a part is compiled from."""

    part: Part
    layout: BaseLayout
    modules: BaseModules
    file: BinaryIO
    files: AdapterFiles
    device: torch.device
    values: Values

    def tensor(self, role: str) -> torch.Tensor:
        name = self.part.tensors[role].name
        tensor = read_tensor(self.file, self.files, name)
        self.values.note(name, tensor)
        return tensor.to(self.device)

    def base(self) -> BaseModule:
        return self.modules(self.part.path)


class Values:
    """Whether an adapter's values can be computed with and do something."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._faults: list[str] = []

    def note(self, tensor_name: str, tensor: torch.Tensor) -> None:
        """Takes a fault down when a tensor of the file is not finite."""
        if not is_finite(tensor):
            self._faults.append(f"{tensor_name}: values that are not finite")

    def cast(self, path: str, delta: ModuleDelta, dtype: torch.dtype) -> ModuleDelta:
        """The delta in the model's dtype; takes a fault down when that or its scale is too much for its values."""
        made = delta.map(lambda tensor: tensor.to(dtype))
        if not self._faults and not all(is_finite(tensor) for tensor in made.tensors):
            self._faults.append(f"{path}: values too large for {dtype} once its scale is folded in")
        return made

    def check(self, changes: bool) -> None:
        """Raises GraftError: Corrupt with the faults, NoEffect when nothing changes."""
        if self._faults:
            raise GraftError(
                ErrorCode.CORRUPT,
                f"adapter `{self._name}` holds values that can't be computed with",
                details=shown(self._faults),
                hint="its training diverged, or the file is damaged; train or copy it again",
            )
        if not changes:
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"adapter `{self._name}` changes nothing: A or B of every module is zero, and what it keeps whole is "
                "the base's",
                hint="it was saved before it was trained, or lora_alpha is 0",
            )


def _both(name: str, path: str, one: ModuleDelta, other: ModuleDelta) -> ModuleDelta:
    try:
        return one | other
    except ValueError as error:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` changes {path} twice in the same way ({error})",
            hint="it combines options of PEFT that exclude each other; train it again",
        ) from None


def _vocabulary(fitted: BaseLayout, layout: BaseLayout) -> int | None:
    """The rows of the adapter's own input embedding, unless it has the base's."""
    if layout.input_embedding is None:
        return None
    rows = fitted.embeddings[layout.input_embedding].rows
    return None if rows == layout.embeddings[layout.input_embedding].rows else rows


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is a number."""
    return bool(torch.isfinite(tensor).all())


def read_tensor(file: BinaryIO, files: AdapterFiles, name: str) -> torch.Tensor:
    """One tensor in float32, in memory of its own: never a map of a file that others could truncate.

    Raises:
        GraftError: Corrupt.
    """
    span: TensorSpan = files.tensors[name]
    data = bytearray(os.pread(file.fileno(), span.end - span.begin, span.begin))
    if len(data) != span.end - span.begin:
        raise GraftError(ErrorCode.CORRUPT, f"the weights of adapter `{files.name}` were cut while they were read")
    return torch.frombuffer(data, dtype=TORCH_DTYPES[span.dtype]).reshape(span.shape).to(torch.float32)
