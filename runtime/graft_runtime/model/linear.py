"""Linear modules that own all that they compute: the base's product, in the form that the processor is fastest in, and
the bank's columns beside it.
"""

from __future__ import annotations

import functools
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional

from graft_runtime.model.native import Columns, Native

_PACKED_FOR = 16
"""Tokens of a step that weights are packed for; steps of any size take them."""
_ROUNDING = 2**-6
"""Of the largest value: what two ways to round a product in bfloat16 may differ by."""
_WIDENED_FROM = 4
"""Tokens; for fewer, a product with the weight as it lies is faster."""
_FEW = 32
"""Tokens; for no more, reading the weight takes longer than the product, in float32."""
_PIECE = 1 << 18
"""Values of a weight that are widened at once: caches hold that many."""


class Beside(Protocol):
    """What the active adapters add to a module by columns."""

    def columns(self, shape: torch.Size) -> Columns | None:
        """Return what the tokens take; `shape` is the input's without its features.

        None: what they take is not told in runs, or no step runs.
        """
        ...

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the module's output with what is added for this input, in place."""
        ...


def own_linears(model: nn.Module) -> None:
    """Make each plain linear module of a model one of ours, in place: whoever holds the module holds ours."""
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = Linear


def compute_with(native: Native | None, model: nn.Module) -> None:
    """Let the linear modules of a model compute with what is compiled, where it takes them; None: with PyTorch."""
    for module in model.modules():
        if type(module) is Linear:
            taken = native is not None and native.takes(module.weight.dtype, *module.weight.shape)
            module.native = native if taken else None


def packable(weight: torch.Tensor) -> bool:
    """Tell whether this processor is faster with the weight packed: if it has instructions for bfloat16.

    In float32 single tokens would be slower.
    """
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and weight.dtype not in _slow_dtypes()


class Linear(nn.Linear):
    """A linear module of a base.

    Attributes:
        beside: what the active adapters add; None where they add nothing by columns.
        native: computes columns, and the whole where that is faster; None: PyTorch.
    """

    beside: Beside | None = None
    native: Native | None = None
    _packed: torch.Tensor | None = None

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - as nn.Linear names it
        """Compute the output, with what the active adapters add."""
        native, beside = self.native, self.beside
        columns = beside.columns(input.shape[:-1]) if native is not None and beside is not None else None
        if native is not None and self._packed is None and _suits(input):
            y = native.linear(input, self.weight, self.bias, columns)
        else:
            y = self.product(input)
            if native is not None and columns is not None:
                native.add(y, input, columns)
        return y if beside is None or columns is not None else beside.add(input, y)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        """Return the base's own output, a new tensor."""
        if self._packed is None:
            return product(x, self.weight, self.bias)
        y: torch.Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return y

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override] # nn.Module sets parameters itself
        """Return the weight; a copy of it where it is packed."""
        if self._packed is None:
            return self._parameters["weight"]  # type: ignore[return-value] # a linear module always has one
        return self._packed.to_dense()

    @torch.inference_mode(mode=False)
    @torch.no_grad()
    def pack(self) -> bool:
        """Keep the weight in oneDNN's own order, and let the parameter go. Whoever merges has done so before.

        Returns:
            False, and all is as it was, when a product with the packed weight is another one.
        """
        weight = self.weight.contiguous()
        tried = weight[:2]
        expected = self.product(tried).float()
        self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, _PACKED_FOR)
        off = (self.product(tried).float() - expected).abs().max()
        if not off <= _ROUNDING * expected.abs().max():
            self._packed = None
            return False
        del self._parameters["weight"]
        return True


def product(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Return x·Wᵀ + c. Where the processor has no instructions for the dtype, the product is one in float32.

    Either way it is summed in float32 and rounded once.
    """
    if x.device.type != "cpu" or x.dtype not in _slow_dtypes() or x.shape[:-1].numel() < _WIDENED_FROM:
        return functional.linear(x, weight, bias)
    y = x.new_empty(*x.shape[:-1], weight.shape[0])
    wide, rows = x.float(), max(1, _PIECE // weight.shape[1])
    for first in range(0, weight.shape[0], rows):
        piece = slice(first, first + rows)
        y[..., piece] = functional.linear(wide, weight[piece].float(), None if bias is None else bias[piece].float())
    return y


def add_product(y: torch.Tensor, z: torch.Tensor, b: torch.Tensor) -> None:
    """Add z·b to y in place."""
    if y.dtype != z.dtype or (z.device.type == "cpu" and z.dtype in _slow_dtypes()):
        y += z.float() @ b.float()
    else:
        y.addmm_(z, b)


def _suits(x: torch.Tensor) -> bool:
    """Tell whether what is compiled is faster than PyTorch for this input, whatever the weight."""
    if x.dtype in _slow_dtypes():
        return True
    return x.dtype == torch.float32 and x.shape[:-1].numel() <= _FEW


@functools.cache
def _slow_dtypes() -> frozenset[torch.dtype]:
    """Return the dtypes that this processor has no instructions for."""
    known = torch.ops.mkldnn
    found = {torch.bfloat16: known._is_mkldnn_bf16_supported(), torch.float16: known._is_mkldnn_fp16_supported()}
    return frozenset(dtype for dtype, fast in found.items() if not fast)
