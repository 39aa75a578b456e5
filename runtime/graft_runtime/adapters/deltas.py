"""What a compiled adapter is: the same for every method that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """y += (x · aᵀ) · b, with the adapter's own scale folded into `b`.

    Attributes:
        a: [rank, input features].
        b: [rank, output features].
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, eq=False)
class CompiledAdapter:
    """An adapter in the memory of the model's device, checked against the base it was compiled for."""

    method: str
    rank: int
    low_rank: Mapping[str, LowRank]
    """By the path of the module."""

    @property
    def bytes(self) -> int:
        """In the memory of the device."""
        return sum(tensor.nbytes for delta in self.low_rank.values() for tensor in (delta.a, delta.b))
