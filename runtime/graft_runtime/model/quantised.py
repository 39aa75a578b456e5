"""Linear modules whose weights are quantised: their products are those of bitsandbytes and torchao.

Each row is computed by itself, so that what a request gets does not depend on the rows beside it.
"""

from __future__ import annotations

import functools
from types import ModuleType
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graft_runtime.model.linear import Linear


class QuantisedLinear(Linear):
    """A linear module whose parameter holds a quantised weight; `weight` is what that stands for."""

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override] # nn.Module sets parameters itself
        """Return the weight without its quantisation, a new tensor: [output features, input features]."""
        raise NotImplementedError

    @property
    def quantised(self) -> Any:
        """Return the parameter, of a class of the library's."""
        return self._parameters["weight"]

    @property
    def bytes(self) -> int:
        """Return how much memory the weight takes, with its scales."""
        raise NotImplementedError


class FourBitLinear(QuantisedLinear):
    """NF4 or FP4 of bitsandbytes. https://arxiv.org/abs/2305.14314"""

    compute_dtype: torch.dtype | None

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return _bitsandbytes().functional.dequantize_4bit(self.quantised.data, self.quantised.quant_state)  # type: ignore[no-any-return]

    @property
    def bytes(self) -> int:
        state = self.quantised.quant_state
        scales = [state.absmax, state.code]
        scales += [state.offset, state.state2.absmax, state.state2.code] if state.nested else []
        return sum(tensor.nbytes for tensor in [self.quantised.data, *scales])

    def product(self, x: torch.Tensor) -> torch.Tensor:
        dtype = x.dtype if self.compute_dtype is None else self.compute_dtype
        bias = None if self.bias is None else self.bias.to(dtype)
        y: torch.Tensor = _bitsandbytes().matmul_4bit(
            x.to(dtype), self.quantised, bias=bias, quant_state=self.quantised.quant_state
        )
        return y.to(x.dtype)


class EightBitLinear(QuantisedLinear):
    """LLM.int8() of bitsandbytes: inputs are quantised as well, but for those beyond a threshold.

    https://arxiv.org/abs/2208.07339. bitsandbytes takes an input that is beyond it in one row from the other rows too.
    """

    state: Any

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return _bitsandbytes().functional.int8_vectorwise_dequant(self.quantised.data, self.quantised.SCB)  # type: ignore[no-any-return]

    @property
    def bytes(self) -> int:
        return int(self.quantised.data.nbytes + self.quantised.SCB.nbytes)

    def product(self, x: torch.Tensor) -> torch.Tensor:
        values, scales = self.quantised.data, self.quantised.SCB
        rows, threshold = x.reshape(-1, x.shape[-1]), self.state.threshold
        beyond = rows.abs() >= (threshold or torch.inf)
        inputs, of_rows, _ = _bitsandbytes().functional.int8_vectorwise_quant(rows.masked_fill(beyond, 0).half())
        bias = None if self.bias is None else self.bias.to(x.dtype)
        y: torch.Tensor = torch.ops.bitsandbytes.int8_scaled_mm.default(
            inputs, values, of_rows, scales, bias=bias, dtype=x.dtype
        )
        columns = beyond.any(dim=0).nonzero()[:, 0]
        if len(columns):
            weight = _bitsandbytes().functional.int8_vectorwise_dequant(values[:, columns].contiguous(), scales)
            y.addmm_(rows.masked_fill(~beyond, 0)[:, columns], weight.to(x.dtype).T)
        return y.view(*x.shape[:-1], -1)


class TorchaoLinear(QuantisedLinear):
    """A weight of torchao's, quantised alone: inputs stay as they are."""

    @property
    def weight(self) -> torch.Tensor:  # type: ignore[override]
        return self.quantised.dequantize()  # type: ignore[no-any-return]

    @property
    def bytes(self) -> int:
        return sum(getattr(self.quantised, name).nbytes for name in ("qdata", "scale"))

    def product(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.quantised, self.bias)


_KINDS = {"Linear4bit": FourBitLinear, "Linear8bitLt": EightBitLinear}


def own_quantised(model: nn.Module) -> int:
    """Make each quantised linear module of a model one of ours, in place. Returns how many there are."""
    found = 0
    for module in model.modules():
        kind = _KINDS.get(type(module).__name__)
        if kind is None and isinstance(module, nn.Linear) and type(module.weight).__module__.startswith("torchao."):
            kind = TorchaoLinear
        if kind is not None:
            module.__class__ = kind
            found += 1
    return found


@functools.cache
def _bitsandbytes() -> ModuleType:
    import bitsandbytes  # noqa: PLC0415 - part of an extra, and a second to load

    return bitsandbytes  # type: ignore[no-any-return]
