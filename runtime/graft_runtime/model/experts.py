"""Experts with adapters beside them: the tokens that have any go through their experts once more, with what is added.

The same computation as Transformers' own (integrations/moe.py), projection by projection, since what an adapter adds
before the gate changes what comes after it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn import functional

from graft_runtime.adapters.deltas import LowRank
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.modules import with_parameters


@dataclass(frozen=True)
class WeightedDeltas:
    """One adapter beside a module of experts.

    Attributes:
        deltas: by parameter.
        weights: [tokens]: how much each token takes of it; zero: it is none of the token's.
    """

    deltas: Mapping[str, LowRank]
    weights: torch.Tensor


def experts_forward(
    module: Any, x: torch.Tensor, experts: torch.Tensor, weights: torch.Tensor, beside: Sequence[WeightedDeltas]
) -> torch.Tensor:
    """Compute what a module of experts gives with adapters.

    Args:
        module: of the experts interface, its weights stacked.
        x: [tokens, hidden].
        experts: [tokens, chosen], the experts of each token.
        weights: [tokens, chosen], theirs.
        beside: the adapters.

    Returns:
        [tokens, hidden].
    """
    total = torch.zeros_like(x)
    first = "gate_up_proj" if module.has_gate else "up_proj"
    for expert in sorted(set(experts.flatten().tolist())):
        if expert >= module.num_experts:  # stands for none
            continue
        tokens, place = (experts == expert).nonzero(as_tuple=True)
        own = [WeightedDeltas(adapter.deltas, adapter.weights[tokens]) for adapter in beside]
        made = _projected(module, first, expert, x[tokens], own)
        made = module._apply_gate(made) if module.has_gate else module.act_fn(made)
        made = _projected(module, "down_proj", expert, made, own)
        total.index_add_(0, tokens, (made * weights[tokens, place, None]).to(total.dtype))
    return total


def _projected(module: Any, name: str, expert: int, x: torch.Tensor, beside: Sequence[WeightedDeltas]) -> torch.Tensor:
    """Compute one projection of one expert, [n, inputs] → [n, outputs], with what the tokens' adapters add."""
    weight = getattr(module, name)[expert]
    y = x @ weight if module.is_transposed else functional.linear(x, weight)
    if module.has_bias:
        y = y + getattr(module, f"{name}_bias")[expert]
    for adapter in beside:
        delta = adapter.deltas.get(name)
        own = adapter.weights != 0
        if delta is not None and bool(own.any()):
            z = functional.linear(x[own], delta.a[expert]) * adapter.weights[own, None]
            y[own] += (z @ delta.b[expert]).to(y.dtype)
    return y


def routed(
    module: Any, x: torch.Tensor, shares: torch.Tensor, deltas: Sequence[LowRank | None]
) -> tuple[torch.Tensor, ...]:
    """Compute what a router gives with adapters: all of it once more, since nothing of it is linear but W·x.

    Args:
        module: a router.
        x: [tokens, hidden].
        shares: [adapters]: how much of each, the same for all tokens.
        deltas: of the adapters.
    """
    weight = module.weight.float()
    for share, delta in zip(shares, deltas, strict=True):
        if delta is not None and bool(share):
            weight = weight + share * (delta.b.T.float() @ delta.a.float())
    made = with_parameters(module, {"weight": weight.to(module.weight.dtype)}).forward(x)
    return (made,) if isinstance(made, torch.Tensor) else tuple(made)


def with_rows(
    made: Sequence[torch.Tensor], index: torch.Tensor, tokens: int, rows: Sequence[torch.Tensor]
) -> list[torch.Tensor]:
    """Return a router's outputs with those of some of its tokens in the place of their own.

    Raises:
        GraftError: UnsupportedMethod when they are not of one row a token.
    """
    if any(each.numel() % tokens for each in made) or len(made) != len(rows):
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            "the model's router gives something else than rows of tokens",
            hint="train the adapter without the router, or merge it with peft's merge_and_unload()",
        )
    return [
        each.reshape(tokens, -1).index_copy(0, index, row.reshape(len(index), -1).to(each.dtype)).view(each.shape)
        for each, row in zip(made, rows, strict=True)
    ]
