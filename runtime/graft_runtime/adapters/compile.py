"""compile(adapter, base) → deltas: reads the weights, folds the scale in, and lets only finite values through."""

from __future__ import annotations

import os
from typing import BinaryIO

import torch

from graft_runtime.adapters.deltas import CompiledAdapter, LowRank
from graft_runtime.adapters.files import AdapterFiles, open_weights
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.methods import lora
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


def compile_adapter(
    files: AdapterFiles, layout: BaseLayout, *, dtype: torch.dtype, device: torch.device
) -> CompiledAdapter:
    """Reads the weights of a checked adapter and fits them to the base.

    Scales are folded into B in float32, and only then A and B are cast to the model's dtype. PEFT keeps them in float32
    and casts the activations instead: the same in float32, and the same up to rounding in half precision, at half the
    memory.

    Args:
        files: checked config and header.
        layout: of the base model.
        dtype: of the model's weights.
        device: of the model's weights.

    Raises:
        GraftError: BaseMismatch, ModuleMissing, ShapeMismatch, InvalidConfig, Corrupt, NoEffect, UnsafeFile.
    """
    plans = lora.plan(files.config, files.tensors, layout, files.name)
    deltas: dict[str, LowRank] = {}
    faults: list[str] = []
    with open_weights(files.directory, files.name) as file:
        for step in plans:
            a = read_tensor(file, files, step.a)
            b = read_tensor(file, files, step.b)
            faults += [
                f"{name}: values that are not finite" for name, t in ((step.a, a), (step.b, b)) if not is_finite(t)
            ]
            delta = LowRank(a.to(dtype), (b * step.scale).T.contiguous().to(dtype))
            if not faults and not (is_finite(delta.a) and is_finite(delta.b)):
                faults.append(f"{step.path}: values too large for {dtype} once its scale {step.scale:g} is folded in")
            deltas[step.path] = delta
    check_values(files.name, faults, any(delta.a.any() and delta.b.any() for delta in deltas.values()))
    return CompiledAdapter(files.method, files.rank, deltas).to(device)


def check_values(name: str, faults: list[str], changes: bool) -> None:
    """That an adapter's values can be computed with and do something.

    Args:
        name: how errors call the adapter.
        faults: what can't be computed with.
        changes: some module gains something.

    Raises:
        GraftError: Corrupt, NoEffect.
    """
    if faults:
        raise GraftError(
            ErrorCode.CORRUPT,
            f"adapter `{name}` holds values that can't be computed with",
            details=shown(faults),
            hint="its training diverged, or the file is damaged; train or copy it again",
        )
    if not changes:
        raise GraftError(
            ErrorCode.NO_EFFECT,
            f"adapter `{name}` changes nothing: A or B of every module is zero",
            hint="it was saved before it was trained, or lora_alpha is 0",
        )


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
