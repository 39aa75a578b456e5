"""y += ΔW·x where ΔW depends on the base's own weight, which is read for it and never written."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.parts.part import Source
from graft_runtime.adapters.parts.shaped import Shape, ShapedPart

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Reflections(ShapedPart):
    """HRA: W·H₁·…·H_r with H = I - 2·u·uᵀ of unit vectors u. https://arxiv.org/abs/2405.17484

    The product is I - U·T·Uᵀ with an upper triangular T (the compact form of Schreiber and Van Loan, 1989), so
    ΔW = -W·U·T·Uᵀ is of rank r.

    Attributes:
        orthogonal: whether the vectors are made orthogonal first (`apply_GS`).
    """

    orthogonal: bool

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {"hra_u": ("in", "r")}

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        given = source.tensor("hra_u")
        units = _orthogonal(given) if self.orthogonal else given / given.norm(dim=0)
        between = units.new_zeros(self.rank, self.rank)
        for column in range(self.rank):
            between[:column, column] = -2 * between[:column, :column] @ (units[:, :column].T @ units[:, column])
            between[column, column] = 2
        b = -(source.base().weight.float() @ units @ between).T
        return {self.path: ModuleDelta(low_rank=LowRank(units.T.contiguous(), b.contiguous()))}


def _orthogonal(vectors: torch.Tensor) -> torch.Tensor:
    """Return the vectors made orthogonal as Gram and Schmidt do, in the order of PEFT: [in, r], of unit length."""
    made: torch.Tensor = vectors / vectors.norm(dim=0)
    for column in range(1, made.shape[1]):
        vector = vectors[:, column]
        for before in range(column):
            vector = vector - (made[:, before] @ vector) * made[:, before]
        made[:, column] = vector / vector.norm()
    return made


@dataclass(frozen=True)
class Bounded(ShapedPart):
    """DeLoRA: ΔW = B·diag(λ/(r·‖Bⁱ‖·‖Aᵢ‖))·A ⊙ the norms of W's columns, as the file has them.

    https://arxiv.org/abs/2503.18225
    """

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {"delora_A": ("r", "in"), "delora_B": ("out", "r"), "delora_lambda": (1,), "delora_w_norm": ("in",)}

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        a, b = source.tensor("delora_A"), source.tensor("delora_B")
        norms = a.norm(dim=1).clamp(min=1e-4) * b.norm(dim=0).clamp(min=1e-4)
        scales = source.tensor("delora_lambda") / self.rank / norms
        low_rank = LowRank(a * source.tensor("delora_w_norm"), (b * scales).T.contiguous())
        return {self.path: ModuleDelta(low_rank=low_rank)}
