"""VeRA: one pair of random projections for all modules; a module has only the vectors that scale them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.layout import BaseLayout, LinearShape
from graft_runtime.adapters.parts.part import Source
from graft_runtime.adapters.parts.shaped import Shape, ShapedPart
from graft_runtime.errors import ErrorCode, GraftError

if TYPE_CHECKING:
    import torch


class Projections:
    """A [r, in] and B [out, r] as wide as the widest of the modules needs; made or read once an adapter.

    Args:
        key: of the random numbers that they were made of (`projection_prng_key`).

    Attributes:
        paths: of the modules that have them.
    """

    def __init__(self, key: int) -> None:
        self._key = key
        self.paths: list[str] = []
        self._made: tuple[torch.Tensor, torch.Tensor] | None = None

    def of(self, source: Source, rank: int, *, saved: bool) -> tuple[torch.Tensor, torch.Tensor]:
        """Return A and B, in float32: on the model's device if the file holds A and B, else on the CPU.

        Args:
            source: of one of the parts.
            rank: r.
            saved: whether the file holds them.
        """
        if self._made is None:
            made = (source.tensor("vera_A"), source.tensor("vera_B")) if saved else self._again(source.layout, rank)
            self._made = made
        return self._made

    def _again(self, layout: BaseLayout, rank: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Make A, then B, as PEFT does: uniform and scaled by fan-in (Kaiming), from one generator on the CPU."""
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        if moved := [path for path in self.paths if path not in layout.linear]:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"VeRA's projections are as wide as the modules of its training, of which {moved[0]} is none here",
                hint="save the adapter with save_projection=True",
            )
        inputs = max(layout.linear[path].input_features for path in self.paths)
        outputs = max(layout.linear[path].output_features for path in self.paths)
        generator = torch.Generator().manual_seed(self._key)

        def uniform(rows: int, columns: int) -> torch.Tensor:
            bound = math.sqrt(3.0) * (math.sqrt(2) / math.sqrt(columns))
            return torch.empty(rows, columns).uniform_(-bound, bound, generator=generator)

        return uniform(rank, inputs), uniform(outputs, rank)


@dataclass(frozen=True)
class Projected(ShapedPart):
    """ΔW = diag(λ_b)·B·diag(λ_d)·A, with as much of A and B as the module is large. https://arxiv.org/abs/2310.11454"""

    projections: Projections

    @property
    def shapes(self) -> Mapping[str, Shape]:
        own: dict[str, Shape] = {"vera_lambda_b": ("out",), "vera_lambda_d": ("r",)}
        saved: dict[str, Shape] = {"vera_A": ("r", "widest in"), "vera_B": ("widest out", "r")}
        return own | (saved if saved.keys() & self.tensors.keys() else {})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        yield from super().misfits(layout)
        if "vera_A" in self.tensors:
            shape, sizes = layout.linear[self.path], self.sizes
            if sizes["widest in"] < shape.input_features:
                yield f"{self.path}: vera_A is of {sizes['widest in']} inputs, model needs {shape.input_features}"
            if sizes["widest out"] < shape.output_features:
                yield f"{self.path}: vera_B is of {sizes['widest out']} outputs, model needs {shape.output_features}"

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        shape: LinearShape = source.layout.linear[self.path]
        outer, inner = source.tensor("vera_lambda_b"), source.tensor("vera_lambda_d")
        a, b = self.projections.of(source, self.rank, saved="vera_A" in self.tensors)
        a = a[:, : shape.input_features].to(inner.device) * inner[:, None]
        b = (b[: shape.output_features].to(outer.device) * outer[:, None]).T.contiguous()
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}
