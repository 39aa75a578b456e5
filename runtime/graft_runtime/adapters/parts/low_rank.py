"""y += s·B·(A·x), with what LoRA's variants put around it: DoRA's norm, a bias in B, a start taken from the base."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graft_runtime.adapters.deltas import LowRank, ModuleDelta
from graft_runtime.adapters.layout import ROUTER, BaseLayout
from graft_runtime.adapters.parts.part import BaseModule, Part, Source, integers, misfit
from graft_runtime.contract.facts import DeltaKind
from graft_runtime.errors import ErrorCode, GraftError

if TYPE_CHECKING:
    import torch

PISSA, OLORA = "pissa", "olora"
STARTS = (PISSA, OLORA)
"""Values of init_lora_weights that took the start of A and B out of the base's weight."""
_DECOMPOSITION = 20
"""About the operations of a matrix's decomposition, as a multiple of rows × columns × the fewer of them."""


@dataclass(frozen=True)
class LinearLowRank(Part):
    """LoRA on a linear module.

    Attributes:
        scale: alpha/r or alpha/√r.
        start: one of STARTS; None when the base was left as it is.
    """

    scale: float
    start: str | None = None

    kinds: ClassVar = ("linear", ROUTER)

    @property
    def rank(self) -> int:
        return self.file_rank * (2 if self.start else 1)

    @property
    def why_rank(self) -> str | None:
        return f"{self.start} of r = {self.file_rank} is a low rank of 2r = {self.rank}" if self.start else None

    @property
    def file_rank(self) -> int:
        """Return the rank of the tensors in the file."""
        return self.tensors["lora_A"].shape[0]

    @property
    def work(self) -> int:
        inputs, outputs = self.tensors["lora_A"].shape[1], self.tensors["lora_B"].shape[0]
        if self.start:
            return _DECOMPOSITION * inputs * outputs * min(inputs, outputs)
        return 0 if self.additive else inputs * outputs * self.rank

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        normed = {DeltaKind.GAIN, DeltaKind.SHIFT} if "lora_magnitude_vector" in self.tensors else set()
        biased = {DeltaKind.OFFSET} if "lora_B.bias" in self.tensors else set()
        return frozenset({DeltaKind.LOW_RANK, *normed, *biased})

    @property
    def plain(self) -> bool:
        """Tell whether the part is s·B·A of its tensors and nothing else."""
        return self.start is None and self.additive and not self.biased

    def faults(self) -> Iterable[str]:
        if missing := [role for role in ("lora_A", "lora_B") if role not in self.tensors]:
            return [f"{self.path}: {missing[0]} is missing"]
        a, b = self.tensors["lora_A"].shape, self.tensors["lora_B"].shape
        if len(a) != len(b) or len(a) < 2 or a[0] != b[1] or set(b[2:]) > {1}:
            return [f"{self.path}: lora_A {a} and lora_B {b}, expected (r, in) and (out, r)"]
        return integers(self.path, self.tensors)  # of a convolution they have more dimensions

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        if self.path in layout.routers and not self.plain:
            yield f"{self.path}: a router takes LoRA without options"
        shape = layout.linear.get(self.path) or layout.routers[self.path]
        rank, outputs = self.file_rank, shape.output_features
        expected = {"lora_A": (rank, shape.input_features), "lora_B": (outputs, rank)}
        for role, tensor in self.tensors.items():
            yield from misfit(self.path, role, tensor, expected.get(role, (outputs,)))

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        a, b = source.tensor("lora_A"), _scaled(source.tensor("lora_B"), self.scale)
        largest = source.largest * max(1.0, abs(self.scale))
        if self.start:
            largest = math.inf
            a, b = _without_start(a, b, self._start_of(source.base()), self.start, self.scale)
        offset = source.tensor("lora_B.bias") * self.scale if self.biased else None
        delta = ModuleDelta(low_rank=LowRank(a, b, largest), offset=offset)
        if not self.additive:
            delta |= _normed(delta, source)
        return {self.path: delta}

    def _start_of(self, base: BaseModule) -> torch.Tensor:
        if base.quantised:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"{self.path}: {self.start} took its start out of the full weight, and the base's is quantised",
                hint="save it as plain LoRA: by save_pretrained with path_initial_model_for_weight_conversion",
            )
        return base.weight.float()


def _scaled(b: torch.Tensor, scale: float) -> torch.Tensor:
    """Scale B in its own memory and return a view of B, [out, r] → [r, out]: the bank turns what the bank copies."""
    return b.mul_(scale).T


def _normed(delta: ModuleDelta, source: Source) -> ModuleDelta:
    """Return g and c of DoRA: y = g ⊙ (W·x + s·B·A·x) + c with g = m / ‖W + s·B·A‖ of each output row.

    https://arxiv.org/abs/2402.09353. The norm depends on nothing but the adapter and the base, so it is taken once.
    """
    assert delta.low_rank is not None
    base = source.base()
    weight = base.weight.float() + delta.low_rank.b.T @ delta.low_rank.a
    gain = source.tensor("lora_magnitude_vector") / weight.norm(dim=1)
    bias = base.bias
    return ModuleDelta(gain=gain, shift=None if bias is None else bias.float() * (1 - gain))


def _without_start(
    a: torch.Tensor, b: torch.Tensor, weight: torch.Tensor, start: str, scale: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return A and B of ΔW = s·B·A - s·B₀·A₀, of twice the rank.

    What training took out of the base at the start of training is taken out here.

    Args:
        a: [r, in].
        b: [r, out], with the scale in it.
        weight: [out, in], the base's, in float32.
        start: PiSSA (https://arxiv.org/abs/2404.02948): s·B₀·A₀ is the best approximation of W of rank r; OLoRA
            (https://arxiv.org/abs/2406.01775): B₀ and A₀ are the first r of the QR decomposition of W.
        scale: s.

    Returns:
        [2r, in] and [2r, out].
    """
    import torch  # noqa: PLC0415 - the process that only checks adapters has none

    rank = a.shape[0]
    if start == PISSA:
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        taken_a, taken_b = right[:rank], (left[:, :rank] * values[:rank]).T
    else:
        left, right = torch.linalg.qr(weight)
        taken_a, taken_b = right[:rank], scale * left[:, :rank].T
    return torch.cat([a, taken_a]), torch.cat([b, -taken_b])


@dataclass(frozen=True)
class EmbeddingLowRank(Part):
    """LoRA on an embedding.

    Attributes:
        scale: alpha/r or alpha/√r.
    """

    scale: float

    kinds: ClassVar = ("an embedding",)

    @property
    def rank(self) -> int:
        return self.tensors["lora_embedding_A"].shape[0]

    @property
    def file_rank(self) -> int:
        """Return the rank of the tensors in the file."""
        return self.rank

    def faults(self) -> Iterable[str]:
        if missing := [role for role in ("lora_embedding_A", "lora_embedding_B") if role not in self.tensors]:
            return [f"{self.path}: {missing[0]} is missing"]
        a, b = self.tensors["lora_embedding_A"].shape, self.tensors["lora_embedding_B"].shape
        if len(a) != 2 or len(b) != 2 or a[0] != b[1] or 0 in (*a, *b):
            return [f"{self.path}: lora_embedding_A {a} and lora_embedding_B {b}, expected (r, rows) and (features, r)"]
        return integers(self.path, self.tensors)

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape = layout.embeddings[self.path]
        expected = {"lora_embedding_A": (self.rank, shape.rows), "lora_embedding_B": (shape.features, self.rank)}
        for role, tensor in self.tensors.items():
            yield from misfit(self.path, role, tensor, expected[role])

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        a = source.tensor("lora_embedding_A")
        b = _scaled(source.tensor("lora_embedding_B"), self.scale)
        return {self.path: ModuleDelta(low_rank=LowRank(a, b))}
