"""compile(adapter, base) → deltas: reads the weights, folds the scale in, and lets only finite values through."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO

import torch

from graft_runtime.adapters.deltas import CompiledAdapter, ModuleDelta, Prefix
from graft_runtime.adapters.files import AdapterFiles, open_weights
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.part import BaseModule, Part
from graft_runtime.adapters.parts.virtual import KeysAndValues
from graft_runtime.adapters.tensors import TensorSpan
from graft_runtime.errors import ErrorCode, GraftError, shown

TORCH_DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2,
    "U8": torch.uint8,
    "I16": torch.int16,
    "I32": torch.int32,
    "I64": torch.int64,
}

MAX_AT_ONCE = 64 << 20
"""Bytes of a file that is read in one piece."""

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
    files, own_layout = fitted(files, layout)
    for path, delta in compile_parts(files, files.parts, own_layout, modules, device=device, values=values):
        cast = values.cast(path, delta, dtype)
        deltas[path] = _both(files.name, path, deltas[path], cast) if path in deltas else cast
    prefix = _prefix(files, own_layout, modules, device, values)
    if prefix is not None:
        prefix = prefix.map(lambda tensor: tensor.to(dtype))
        values.note_cast("prefix", (prefix.keys, prefix.values), dtype)
    values.check(prefix is not None or any(delta.changes for delta in deltas.values()))
    return CompiledAdapter(
        method=files.method,
        rank=files.rank,
        modules=deltas,
        invocation=files.recipe.invocation,
        vocabulary=_vocabulary(own_layout, layout),
        prefix=prefix,
        remapped=files.remapped,
    )


def compile_parts(
    files: AdapterFiles,
    parts: Sequence[Part],
    layout: BaseLayout,
    modules: BaseModules,
    *,
    device: torch.device,
    values: Values,
) -> Iterator[tuple[str, ModuleDelta]]:
    """What each part does to a module, in float32, part by part: only one is in memory at a time.

    Args:
        files: checked config and header.
        parts: of the adapter, or some of them.
        layout: as `fitted` returns it.
        modules: of the base model.
        device: of the deltas.
        values: takes note of what is not finite.
    """
    with open_weights(files.directory, files.name, version=files.version) as file:
        content = _content(file, files) if len(parts) == len(files.parts) else None  # a merge asks for a few at a time
        finite = content is not None and _is_all_finite(content, files)
        for part in parts:
            source = _Source(part, layout, modules, file, files, device, values, content, finite)
            yield from part.compile(source).items()


def _prefix(
    files: AdapterFiles, layout: BaseLayout, modules: BaseModules, device: torch.device, values: Values
) -> Prefix | None:
    part = next((part for part in files.parts if isinstance(part, KeysAndValues)), None)
    if part is None:
        return None
    with open_weights(files.directory, files.name, version=files.version) as file:
        return part.prefix(_Source(part, layout, modules, file, files, device, values))


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
    content: torch.Tensor | None = None
    """Of the whole file, where it was read at once."""
    finite: bool = False
    """Every tensor of the file is known to be."""

    def tensor(self, role: str) -> torch.Tensor:
        name = self.part.tensors[role].name
        tensor = read_tensor(self.file, self.files, name, self.content)
        if not self.finite:
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
        made = delta if dtype == torch.float32 else delta.map(lambda tensor: tensor.to(dtype))
        self.note_cast(path, made.tensors, dtype)
        return made

    def note_cast(self, what: str, tensors: Sequence[torch.Tensor], dtype: torch.dtype) -> None:
        """Takes a fault down when tensors that are of the model's dtype now are not finite any more."""
        if not self._faults and not all(is_finite(tensor) for tensor in tensors):
            self._faults.append(f"{what}: values too large for {dtype} once its scale is folded in")

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


def _vocabulary(own: BaseLayout, layout: BaseLayout) -> int | None:
    """The rows of the adapter's own input embedding, unless it has the base's."""
    if layout.input_embedding is None:
        return None
    rows = own.embeddings[layout.input_embedding].rows
    return None if rows == layout.embeddings[layout.input_embedding].rows else rows


def is_finite(tensor: torch.Tensor) -> bool:
    """Whether every value is a number. The least and the most say so, twenty times as fast as looking at each."""
    if not tensor.numel():
        return True
    least, most = torch.aminmax(tensor.T if tensor.dim() == 2 and not tensor.is_contiguous() else tensor)
    return math.isfinite(least.item()) and math.isfinite(most.item())


def read_tensor(file: BinaryIO, files: AdapterFiles, name: str, content: torch.Tensor | None = None) -> torch.Tensor:
    """One tensor in float32, in our own memory: never a map of a file that others could truncate.

    Args:
        file: the weights.
        files: of the adapter.
        name: of the tensor.
        content: of the whole file, where it was read at once; the tensor may lie in it.

    Raises:
        GraftError: Corrupt.
    """
    span: TensorSpan = files.tensors[name]
    dtype = TORCH_DTYPES[span.dtype]
    data = _read(file, files, span.begin, span.end) if content is None else content[span.begin : span.end]
    if span.begin % dtype.itemsize and content is not None:
        data = data.clone()
    return data.view(dtype).reshape(span.shape).to(torch.float32)


def _content(file: BinaryIO, files: AdapterFiles) -> torch.Tensor | None:
    """The whole file in one read, where it is of a usual size: many small ones take longer."""
    end = max((span.end for span in files.tensors.values()), default=0)
    return _read(file, files, 0, end) if end <= MAX_AT_ONCE else None


def _is_all_finite(content: torch.Tensor, files: AdapterFiles) -> bool:
    """Whether all tensors are, in one look, where they are float32 throughout and lie as they should."""
    begin = min((span.begin for span in files.tensors.values()), default=0)
    if begin % 4 or any(span.dtype != "F32" for span in files.tensors.values()):
        return False
    return is_finite(content[begin:].view(torch.float32))


def _read(file: BinaryIO, files: AdapterFiles, begin: int, end: int) -> torch.Tensor:
    data = torch.empty(end - begin, dtype=torch.uint8)
    if os.preadv(file.fileno(), [data.numpy().data], begin) != len(data):
        raise GraftError(ErrorCode.CORRUPT, f"the weights of adapter `{files.name}` were cut while they were read")
    return data
