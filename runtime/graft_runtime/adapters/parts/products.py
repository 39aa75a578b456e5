"""y += ΔW·x where ΔW is a product of factors that is exactly a low rank: each is written out as A and B.

Formulas are those of the layers of peft 0.21 (`get_delta_weight`), which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.part import Source
from graft_runtime.adapters.parts.shaped import Shape, ShapedPart

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class SingularValues(ShapedPart):
    """AdaLoRA: ΔW = s·B·(E ⊙ A). https://arxiv.org/abs/2303.10512

    Attributes:
        scale: s.
    """

    scale: float

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {"lora_A": ("r", "in"), "lora_E": ("r", 1), "lora_B": ("out", "r")}

    @property
    def may_be_empty(self) -> bool:
        return self.rank == 0  # its budget was given to other modules

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        if not self.rank:
            return {}
        a = source.tensor("lora_A") * source.tensor("lora_E")
        b = (source.tensor("lora_B") * self.scale).T.contiguous()
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}


@dataclass(frozen=True)
class Hadamard(ShapedPart):
    """LoHa: ΔW = s·(w1_a·w1_b) ⊙ (w2_a·w2_b), of rank r². https://arxiv.org/abs/2108.06098

    Attributes:
        scale: s.
    """

    scale: float

    @property
    def shapes(self) -> Mapping[str, Shape]:
        outer, inner = ("out", "r"), ("r", "in")
        return {"hada_w1_a": outer, "hada_w1_b": inner, "hada_w2_a": outer, "hada_w2_b": inner}

    @property
    def file_rank(self) -> int:
        """Return the rank of the tensors in the file."""
        return self.sizes.get("r", 0)

    @property
    def rank(self) -> int:
        return self.file_rank**2

    @property
    def why_rank(self) -> str:
        return f"r = {self.file_rank} of LoHa is a low rank of r² = {self.rank}"

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        first, second = source.tensor("hada_w1_b"), source.tensor("hada_w2_b")
        a = (first[:, None] * second[None]).flatten(0, 1)
        first, second = source.tensor("hada_w1_a").T * self.scale, source.tensor("hada_w2_a").T
        b = (first[:, None] * second[None]).flatten(0, 1)
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}


@dataclass(frozen=True)
class Kronecker(ShapedPart):
    """LoKr: ΔW = s·w1 ⊗ w2, of the product of their ranks. https://arxiv.org/abs/2309.14859

    Each of the two is one matrix, or a product of two of rank r.

    Attributes:
        scale: s.
    """

    scale: float

    @property
    def shapes(self) -> Mapping[str, Shape]:
        first: dict[str, Shape] = {"lokr_w1": ("out 1", "in 1")}
        second: dict[str, Shape] = {"lokr_w2": ("out 2", "in 2")}
        if "lokr_w1" not in self.tensors:
            first = {"lokr_w1_a": ("out 1", "r"), "lokr_w1_b": ("r", "in 1")}
        if "lokr_w2" not in self.tensors:
            second = {"lokr_w2_a": ("out 2", "r"), "lokr_w2_b": ("r", "in 2")}
        return first | second

    @property
    def file_rank(self) -> int | None:
        """Return the rank of the tensors in the file; None where both matrices are whole."""
        return self.sizes.get("r")

    @property
    def rank(self) -> int:
        return self._rank_of(1) * self._rank_of(2)

    @property
    def why_rank(self) -> str:
        return f"LoKr multiplies the ranks of its two matrices, here {self._rank_of(1)} · {self._rank_of(2)}"

    def faults(self) -> Iterable[str]:
        known = self.shapes
        both = [f"{self.path}: {role} stands beside a whole matrix" for role in self.tensors if role not in known]
        return both or super().faults()

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape, sizes = layout.linear[self.path], self.sizes
        made = (sizes["out 1"] * sizes["out 2"], sizes["in 1"] * sizes["in 2"])
        needed = (shape.output_features, shape.input_features)
        return [] if made == needed else [f"{self.path}: lokr_w1 and lokr_w2 make {made}, model needs {needed}"]

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        (left, right), (lower, upper) = self._factors(source, 1), self._factors(source, 2)
        a, b = torch.kron(right, upper), torch.kron(left, lower).T * self.scale
        return {self.path: ModuleDelta(low_rank=LowRank(a, b.contiguous()))}

    def _rank_of(self, which: int) -> int:
        sizes = self.sizes
        if f"lokr_w{which}" in self.tensors:
            return min(sizes.get(f"out {which}", 0), sizes.get(f"in {which}", 0))
        return sizes.get("r", 0)

    def _factors(self, source: Source, which: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return one of the two matrices as [out, rank] and [rank, in]; a whole matrix has the identity as a factor."""
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        role = f"lokr_w{which}"
        if role not in self.tensors:
            return source.tensor(f"{role}_a"), source.tensor(f"{role}_b")
        whole = source.tensor(role)
        identity = torch.eye(min(whole.shape), device=whole.device)
        return (identity, whole) if whole.shape[0] <= whole.shape[1] else (whole, identity)
