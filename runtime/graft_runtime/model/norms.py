"""Norms in one operation. Transformers' RMS norms are eight: as many kernels on a GPU, as many calls everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

from graft_runtime.model.native import Native

_TOKENS, _OF_EACH = 4, {torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""How many a norm is tried on, and how far results may differ, as a part of each: the one operation rounds once."""


class _Norm:
    """The one operation.

    Args:
        epsilon: below the root.
        shift: of the weight: 1 where a weight of 0 changes nothing, as Gemma has it.
        native: computes it where it can.
    """

    def __init__(self, epsilon: float, shift: float, native: Native | None) -> None:
        self._epsilon, self._shift, self._native = epsilon, shift, native

    def __call__(self, x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        if self._native is not None and x.dtype == weight.dtype and self._native.takes(x.dtype, x.shape[-1]):
            return self._native.norm(x, weight, self._epsilon, self._shift)
        if not self._shift:
            return rms_norm(x, weight.shape, weight, self._epsilon)
        return rms_norm(x.float(), weight.shape, weight.float() + self._shift, self._epsilon).to(x.dtype)


def fuse_norms(model: nn.Module, native: Native | None = None) -> list[nn.Module]:
    """Let the modules that are RMS norms and no more compute in one operation. Returns these modules.

    Args:
        model: its modules.
        native: see `_Norm`.
    """
    found = [(module, _one_operation(module, native)) for module in model.modules()]
    fused = [(module, norm) for module, norm in found if norm is not None]
    kinds = {kind: _fused(kind) for kind in {type(module) for module, _ in fused}}
    for module, norm in fused:
        module.__class__, module._norm_at_once = kinds[type(module)], norm  # type: ignore[assignment]
    return [module for module, _ in fused]


def restore_norms(fused: list[nn.Module]) -> None:
    """Let these modules compute as they did before."""
    for module in fused:
        module.__class__ = type(module).__mro__[1]


@torch.no_grad()
def _one_operation(module: nn.Module, native: Native | None) -> _Norm | None:
    """Return the operation that makes of a trial input what the module makes of it, if there is one."""
    if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return None
    weight, epsilon = module.weight, getattr(module, "variance_epsilon", getattr(module, "eps", None))
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return None
    if weight.dtype not in _OF_EACH:
        return None
    seed = torch.arange(_TOKENS * weight.shape[0], device=weight.device).view(_TOKENS, -1)
    given = torch.sin(seed * 1.7).to(weight.dtype)
    expected = module(given)
    norms = {shift: _Norm(epsilon, shift, native) for shift in (0.0, 1.0)}
    off = {shift: _off(norm(given, weight), expected) for shift, norm in norms.items()}
    nearest = min(off, key=lambda shift: off[shift])  # beside a large weight, the shift is within the rounding
    return norms[nearest] if off[nearest] <= _OF_EACH[weight.dtype] else None


def _off(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Return how far values are off at most, as a part of each."""
    if made.dtype != expected.dtype or made.shape != expected.shape:
        return float("inf")
    return float(((made - expected).abs() / expected.abs().clamp(min=torch.finfo(made.dtype).tiny)).max())


def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return self._norm_at_once(hidden_states, self.weight)  # type: ignore[no-any-return]

    return type(kind.__name__, (kind,), {"forward": forward})
