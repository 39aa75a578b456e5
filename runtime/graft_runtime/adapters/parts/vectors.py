"""What multiplies or shifts the features of a module: no product of matrices at all."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graft_runtime.adapters.deltas import ModuleDelta
from graft_runtime.adapters.parts.part import Source
from graft_runtime.adapters.parts.shaped import Shape, ShapedPart
from graft_runtime.contract.facts import DeltaKind


@dataclass(frozen=True)
class Gain(ShapedPart):
    """IA3: y ⊙ l, bias included, or W·(x ⊙ l) of a feed-forward module. https://arxiv.org/abs/2205.05638

    Attributes:
        feedforward: whether l is of the input.
    """

    feedforward: bool

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {"ia3_l": (1, "in") if self.feedforward else ("out", 1)}

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.GAIN})

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        gain = source.tensor("ia3_l").flatten()
        return {self.path: ModuleDelta(input_gain=gain) if self.feedforward else ModuleDelta(gain=gain)}


@dataclass(frozen=True)
class Offset(ShapedPart):
    """BEFT: y + b. https://arxiv.org/abs/2509.15974"""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {"beft_bias": (1, "out")}

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.OFFSET})

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        return {self.path: ModuleDelta(offset=source.tensor("beft_bias").flatten())}
