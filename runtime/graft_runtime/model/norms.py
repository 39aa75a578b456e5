"""Norms in one operation. Transformers' RMS norms are eight: as many kernels on a GPU, as many calls everywhere."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn.functional import rms_norm

_TOKENS, _OF_LARGEST = 4, {torch.float32: 1e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""How many a norm is tried on, and how far results may differ: the one operation rounds once."""


def fuse_norms(model: nn.Module) -> list[nn.Module]:
    """Let the modules that are RMS norms and no more compute in one operation. Returns these modules."""
    fused = [module for module in model.modules() if _is_plain(module)]
    kinds = {kind: _fused(kind) for kind in map(type, fused)}
    for module in fused:
        module.__class__ = kinds[type(module)]
    return fused


def restore_norms(fused: list[nn.Module]) -> None:
    """Let these modules compute as they did before."""
    for module in fused:
        module.__class__ = type(module).__mro__[1]


def _is_plain(module: nn.Module) -> bool:
    """Tell whether what the operation makes of a trial input is what the module makes of it."""
    if not type(module).__name__.endswith("RMSNorm") or [name for name, _ in module.named_parameters()] != ["weight"]:
        return False
    weight, epsilon = module.weight, getattr(module, "variance_epsilon", None)
    if not isinstance(weight, torch.Tensor) or weight.dim() != 1 or not isinstance(epsilon, float):
        return False
    seed = torch.arange(_TOKENS * weight.shape[0], device=weight.device).view(_TOKENS, -1)
    given = torch.sin(seed * 1.7).to(weight.dtype)
    made, expected = rms_norm(given, weight.shape, weight, epsilon), module(given)
    if made.dtype != expected.dtype or made.shape != expected.shape or weight.dtype not in _OF_LARGEST:
        return False
    return bool((made - expected).abs().max() <= _OF_LARGEST[weight.dtype] * expected.abs().max())


def _fused(kind: type[nn.Module]) -> type[nn.Module]:
    def forward(self: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return rms_norm(hidden_states, self.weight.shape, self.weight, self.variance_epsilon)

    return type(kind.__name__, (kind,), {"forward": forward})
