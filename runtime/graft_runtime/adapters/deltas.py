"""What a compiled adapter is: the same for every method that made it.

One module with weight W and bias c becomes

    y = gain ⊙ (W·x + c + w · (B·A·x + offset)) + shift

for the rows of an adapter that is served with weight w; before that, rows of W may be replaced by the adapter's own.
Every part is optional and free when it is absent. Tensors are of the model's dtype, on its device.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """y += w · (x · aᵀ) · b, with the adapter's own scale folded into `b`.

    Attributes:
        a: [rank, input features]; of an embedding [rank, rows].
        b: [rank, output features].
    """

    a: torch.Tensor
    b: torch.Tensor


@dataclass(frozen=True, eq=False)
class Rows:
    """Rows of a module's weight that this adapter has as its own: tokens of an embedding, outputs of a head.

    Attributes:
        index: [n], int64, ascending.
        weight: [n, features].
        bias: [n], or None.
        count: rows of the whole weight as the adapter knows it; more than the base's for a grown vocabulary, fewer for
            one that shrank.
    """

    index: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None
    count: int


@dataclass(frozen=True, eq=False)
class ModuleDelta:
    """What one module gains; which parts a module may have is the kind of the module's.

    Attributes:
        low_rank: of a linear module or an embedding.
        offset: [output features], weighted as the low rank is.
        gain: [output features].
        shift: [output features], not weighted.
        input_gain: [input features]: x ⊙ input_gain goes into W and A.
        rows: of a linear module or an embedding.
        parameters: of a norm, in the place of the base's: name → [features].
    """

    low_rank: LowRank | None = None
    offset: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    input_gain: torch.Tensor | None = None
    rows: Rows | None = None
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)

    @property
    def additive(self) -> bool:
        """Whether it is ΔW·x + Δc: it can be weighted, and added to others."""
        return (
            all(value is None for value in (self.gain, self.shift, self.input_gain, self.rows)) and not self.parameters
        )

    @property
    def tensors(self) -> list[torch.Tensor]:
        """All of them."""
        low_rank = [self.low_rank.a, self.low_rank.b] if self.low_rank else []
        rows = [self.rows.index, self.rows.weight, self.rows.bias] if self.rows else []
        vectors = [self.offset, self.gain, self.shift, self.input_gain, *self.parameters.values()]
        return [tensor for tensor in (*low_rank, *rows, *vectors) if tensor is not None]

    @property
    def changes(self) -> bool:
        """Whether any of it is more than zeros and ones."""
        low_rank = self.low_rank is not None and bool(self.low_rank.a.any() and self.low_rank.b.any())
        gains = any(bool((gain != 1).any()) for gain in (self.gain, self.input_gain) if gain is not None)
        sums = any(bool(vector.any()) for vector in (self.offset, self.shift) if vector is not None)
        return low_rank or gains or sums or self.rows is not None or bool(self.parameters)

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ModuleDelta:
        """With every tensor of floating point changed, and `Rows.index` as it is."""

        def changed(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else change(value)

        low_rank, rows = self.low_rank, self.rows
        return ModuleDelta(
            low_rank=low_rank and LowRank(change(low_rank.a), change(low_rank.b)),
            offset=changed(self.offset),
            gain=changed(self.gain),
            shift=changed(self.shift),
            input_gain=changed(self.input_gain),
            rows=rows and replace(rows, weight=change(rows.weight), bias=changed(rows.bias)),
            parameters={name: change(value) for name, value in self.parameters.items()},
        )

    def __or__(self, other: ModuleDelta) -> ModuleDelta:
        """Both on one module: shifts add up. Raises ValueError when they share another part."""
        parts: dict[str, Any] = {}
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if part.name == "parameters":
                parts[part.name] = {**mine, **theirs}
            elif mine is None or theirs is None:
                parts[part.name] = theirs if mine is None else mine
            elif part.name == "shift":
                parts[part.name] = mine + theirs
            else:
                raise ValueError(part.name)
        return ModuleDelta(**parts)


@dataclass(frozen=True, eq=False)
class CompiledAdapter:
    """An adapter in the memory of the model's device, checked against the base it was compiled for."""

    method: str
    """PEFT's name of it: `LORA`."""
    rank: int
    """Columns that it takes of the bank: the most that one of its modules needs."""
    modules: Mapping[str, ModuleDelta]
    """By the path of the module."""
    invocation: tuple[int, ...] = ()
    """It takes part from the last place on where a prompt says these tokens; nowhere when it does not (aLoRA)."""
    vocabulary: int | None = None
    """Token ids that it knows, when they are not the base's."""

    @property
    def bytes(self) -> int:
        """In the memory of the device."""
        return sum(tensor.nbytes for tensor in self._tensors())

    @property
    def additive(self) -> bool:
        """Whether a request may add it to others: all that it does is ΔW·x."""
        return all(delta.additive for delta in self.modules.values())

    @property
    def scalable(self) -> bool:
        """Whether a weight other than 1 means something: it scales ΔW, which nothing else multiplies."""
        deltas = self.modules.values()
        weighted = any(delta.low_rank is not None or delta.offset is not None for delta in deltas)
        return weighted and all(delta.gain is None and delta.input_gain is None for delta in deltas)

    def to(self, device: torch.device) -> CompiledAdapter:
        """In the memory of this device; itself when it is there."""
        moved = {path: _moved(delta, device) for path, delta in self.modules.items()}
        return replace(self, modules=moved)

    def _tensors(self) -> Iterator[torch.Tensor]:
        for delta in self.modules.values():
            yield from delta.tensors


def _moved(delta: ModuleDelta, device: torch.device) -> ModuleDelta:
    moved = delta.map(lambda tensor: tensor.to(device))
    return replace(moved, rows=moved.rows and replace(moved.rows, index=moved.rows.index.to(device)))
