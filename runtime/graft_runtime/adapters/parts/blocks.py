"""y += ΔW·x where ΔW is made of blocks: written out as A and B, each block in columns of its own.

Formulas are those of the layers of peft 0.21, which the tests compare with.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.layout import BaseLayout, LinearShape
from graft_runtime.adapters.parts.part import Source
from graft_runtime.adapters.parts.shaped import Shape, ShapedPart


@dataclass(frozen=True)
class Shards(ShapedPart):
    """MiSS: y += (the sum of x over all blocks of r features) · M, the last block padded. https://arxiv.org/abs/2409.15371

    Attributes:
        repeated: whether M holds but the first of the output features and repeats (`mini`).
    """

    repeated: bool

    @property
    def shapes(self) -> Mapping[str, Shape]:
        return {"miss_block": ("r", "mini_r" if self.repeated else "out")}

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        outputs, part = layout.linear[self.path].output_features, self.sizes.get("mini_r", 1)
        if outputs % part:
            return [f"{self.path}: mini_r is {part}, of which the model's {outputs} outputs are no multiple"]
        return super().misfits(layout)

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        shape, block = source.layout.linear[self.path], source.tensor("miss_block")
        blocks = -(-shape.input_features // self.rank)
        a = torch.eye(self.rank, device=block.device).repeat(1, blocks)[:, : shape.input_features].contiguous()
        b = block.repeat(1, shape.output_features // block.shape[1])
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}


@dataclass(frozen=True)
class Granular(ShapedPart):
    """GraLoRA: a low rank of r/k for each of k x k blocks of W, and a plain one for all of it.

    https://arxiv.org/abs/2505.20355

    Attributes:
        scale: alpha/(r + the plain one's rank).
    """

    scale: float

    @property
    def shapes(self) -> Mapping[str, Shape]:
        plain: dict[str, Shape] = {"gralora_A_general": ("h", "in"), "gralora_B_general": ("out", "h")}
        blocks: dict[str, Shape] = {"gralora_A": ("k", "in/k", "r"), "gralora_B": ("k", "r", "out/k")}
        return blocks | (plain if plain.keys() & self.tensors.keys() else {})

    @property
    def file_rank(self) -> int:
        """Return the rank of one row of blocks in the file."""
        return self.sizes.get("r", 0)

    @property
    def rank(self) -> int:
        sizes = self.sizes
        return sizes.get("k", 0) * sizes.get("r", 0) + sizes.get("h", 0)

    @property
    def why_rank(self) -> str:
        return f"GraLoRA of r = {self.file_rank} in k = {self.sizes['k']} rows is a low rank of r · k"

    def faults(self) -> Iterable[str]:
        faults = list(super().faults())
        if not faults and self.file_rank % self.sizes["k"]:
            return [f"{self.path}: r = {self.file_rank} is no multiple of gralora_k = {self.sizes['k']}"]
        return faults

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape, k = layout.linear[self.path], self.sizes["k"]
        if shape.input_features % k or shape.output_features % k:
            return [f"{self.path}: gralora_k is {k}, of which a side of the model's {shape.weight} is no multiple"]
        return super().misfits(layout)

    def of_module(self, shape: LinearShape) -> Mapping[str, int]:
        k = self.sizes["k"]
        inputs, outputs = shape.input_features, shape.output_features
        return {"in": inputs, "out": outputs, "in/k": inputs // k, "out/k": outputs // k}

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        inner, outer = source.tensor("gralora_A"), source.tensor("gralora_B") * self.scale
        k, share = self.sizes["k"], self.file_rank // self.sizes["k"]
        shape = source.layout.linear[self.path]
        a = inner.new_zeros(k, k, share, k, shape.input_features // k)  # of the block n that is read, the row j
        b = outer.new_zeros(k, k, share, k, shape.output_features // k)
        for n in range(k):
            for j in range(k):
                a[n, j, :, n] = inner[n, :, j * share : (j + 1) * share].T
                b[n, j, :, j] = outer[j, n * share : (n + 1) * share]
        a, b = a.reshape(k * self.file_rank, -1), b.reshape(k * self.file_rank, -1)
        if "gralora_A_general" in self.tensors:
            a = torch.cat([a, source.tensor("gralora_A_general")])
            b = torch.cat([b, source.tensor("gralora_B_general").T * self.scale])
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}
