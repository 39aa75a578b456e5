"""What a compiled adapter is: the same for every method that made it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

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
    """An adapter in the memory of one device, checked against the base it was compiled for."""

    method: str
    rank: int
    low_rank: Mapping[str, LowRank]
    """By the path of the module."""

    @property
    def bytes(self) -> int:
        """In the memory of the device."""
        return sum(tensor.nbytes for delta in self.low_rank.values() for tensor in (delta.a, delta.b))

    def to(self, device: torch.device) -> CompiledAdapter:
        """The same in the memory of this device: a copy, unless it is there already."""
        moved = {path: LowRank(delta.a.to(device), delta.b.to(device)) for path, delta in self.low_rank.items()}
        return replace(self, low_rank=moved)
