"""y += B·(A·x) where A and B are gathered from vectors or numbers that all modules share, by indices of their own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.layout import BaseLayout, LinearShape
from graft_runtime.adapters.parts.part import Roles, Source, integers
from graft_runtime.adapters.parts.shaped import Shape, ShapedPart
from graft_runtime.errors import ErrorCode, GraftError

if TYPE_CHECKING:
    import torch

EXACT = 1 << 24
"""Whole numbers that tensors hold exactly once they are read, in float32."""


@dataclass(frozen=True)
class Gathered(ShapedPart):
    """Some of the tensors are indices."""

    @property
    def indices(self) -> frozenset[str]:
        """Return the roles of the tensors that are indices."""
        raise NotImplementedError

    def faults(self) -> Iterable[str]:
        floating: Roles = {role: tensor for role, tensor in self.tensors.items() if role not in self.indices}
        whole = {role: tensor for role, tensor in self.tensors.items() if role in self.indices}
        wrong = [
            f"{self.path}: {role} has dtype {tensor.span.dtype}, expected whole numbers"
            for role, tensor in whole.items()
            if tensor.span.dtype not in ("U8", "I16", "I32", "I64")
        ]
        large = [
            f"{self.path}: {name} = {size}, expected at most {EXACT}"
            for name, size in self.sizes.items()
            if size > EXACT
        ]
        return self.missing() or self.misshapen() or [*integers(self.path, floating), *wrong, *large]

    def picked(self, source: Source, role: str, values: torch.Tensor) -> torch.Tensor:
        """Return the values at the indices of this role. Raises GraftError: Corrupt for an index outside the values."""
        index = source.tensor(role).long()
        if index.numel() and (int(index.min()) < 0 or int(index.max()) >= values.shape[0]):
            raise GraftError(
                ErrorCode.CORRUPT,
                f"{self.tensors[role].name} has indices {int(index.min())} … {int(index.max())}, expected 0 … "
                f"{values.shape[0] - 1}",
                hint="the file is damaged; copy or save it again",
            )
        return values[index]


@dataclass(frozen=True)
class MixedVectors(Gathered):
    """VB-LoRA: each piece of A and B is a mix of the k vectors of a bank that weigh most. https://arxiv.org/abs/2405.15179

    Attributes:
        most: k; of weights that are saved as such, what the file has.
    """

    most: int

    @property
    def shapes(self) -> Mapping[str, Shape]:
        bank: dict[str, Shape] = {"vector_bank": ("n", "v")}
        if "A" in self.tensors or "B" in self.tensors:
            return {"A": ("r", "in/v", "n"), "B": ("out/v", "r", "n")} | bank
        chosen: dict[str, Shape] = {"A_indices": ("r", "in/v", "k"), "B_indices": ("out/v", "r", "k")}
        return chosen | {"A_weights": ("r", "in/v", "k - 1"), "B_weights": ("out/v", "r", "k - 1")} | bank

    @property
    def indices(self) -> frozenset[str]:
        return frozenset({"A_indices", "B_indices"})

    def faults(self) -> Iterable[str]:
        sizes = self.sizes
        chosen = sizes.get("k", self.most)
        if chosen > sizes.get("n", chosen) or sizes.get("k - 1", chosen - 1) != chosen - 1:
            return [f"{self.path}: it mixes {chosen} of {sizes.get('n')} vectors by {sizes.get('k - 1')} weights"]
        return super().faults()

    @property
    def may_be_empty(self) -> bool:
        return self.sizes.get("k - 1") == 0  # one vector, whose weight is 1

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape, length = layout.linear[self.path], self.sizes["v"]
        if shape.input_features % length or shape.output_features % length:
            return [
                f"{self.path}: vector_length is {length}, a side of the model's {shape.weight} is no multiple of it"
            ]
        return super().misfits(layout)

    def of_module(self, shape: LinearShape) -> Mapping[str, int]:
        length = self.sizes["v"]
        return {"in/v": shape.input_features // length, "out/v": shape.output_features // length}

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        bank = source.tensor("vector_bank")
        a = self._mixed(source, "A", bank).flatten(1)
        b = self._mixed(source, "B", bank).transpose(0, 1).flatten(1)
        return {self.path: ModuleDelta(low_rank=LowRank(a, b.contiguous()))}

    def _mixed(self, source: Source, which: str, bank: torch.Tensor) -> torch.Tensor:
        """Return A or B as mixed vectors: [pieces, pieces, vector length]."""
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        if which in self.tensors:
            most = source.tensor(which).topk(self.most, dim=-1)
            weights, vectors = most.values.softmax(dim=-1), bank[most.indices]
        else:
            saved = source.tensor(f"{which}_weights")
            weights = torch.cat([saved, 1 - saved.sum(-1, keepdim=True)], dim=-1)
            vectors = self.picked(source, f"{which}_indices", bank)
        return (weights[..., None] * vectors).sum(-2)


@dataclass(frozen=True)
class PickedNumbers(Gathered):
    """Uni-LoRA: each number of A and B is one of a single vector, scaled. https://arxiv.org/abs/2506.00799"""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        a, b = ("r", "in"), ("out", "r")
        return {"indices_A": a, "scales_A": a, "indices_B": b, "scales_B": b, "theta_d": ("d",)}

    @property
    def indices(self) -> frozenset[str]:
        return frozenset({"indices_A", "indices_B"})

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        theta = source.tensor("theta_d")
        a = self.picked(source, "indices_A", theta) * source.tensor("scales_A")
        b = (self.picked(source, "indices_B", theta) * source.tensor("scales_B")).T.contiguous()
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}
