"""What a compiled adapter is: the same for every method that made it.

One module with weight W and bias c becomes

    y = gain ⊙ (W·x + c + w · (B·A·x + offset)) + shift

for the rows of an adapter that is served with weight w; before that, rows of W may be replaced by the adapter's own.
Every part is optional and free when it is absent. Tensors are of the model's dtype, on its device.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import TYPE_CHECKING, Any

from graft_runtime.contract.facts import ADDITIVE, AdapterFacts, DeltaKind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, eq=False)
class LowRank:
    """y += w · (x · aᵀ) · b, with the adapter's own scale folded into `b`.

    Attributes:
        a: [rank, input features]; of an embedding [rank, rows].
        b: [rank, output features].
        largest: no value of both is beyond it, in either direction; infinity when nobody looked.
    """

    a: torch.Tensor
    b: torch.Tensor
    largest: float = math.inf

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> LowRank:
        """Return the low rank with both tensors in another dtype or place."""
        return LowRank(change(self.a), change(self.b), self.largest)


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

    def under(self, other: Rows) -> Rows:
        """Return these rows with the weights of `other` in the place of their own; biases stay, where there are any."""
        has = self.index.new_zeros(other.count).bool()
        has[self.index], has[other.index] = True, True
        place = has.cumsum(0) - 1
        weight = self.weight.new_empty(int(has.sum()), self.weight.shape[1])
        weight[place[self.index]], weight[place[other.index]] = self.weight, other.weight
        bias = None if self.bias is None else self.bias.new_zeros(weight.shape[0])
        if bias is not None and self.bias is not None:
            bias[place[other.index]] = 0 if other.bias is None else other.bias
            bias[place[self.index]] = self.bias
        return Rows(has.nonzero()[:, 0], weight, bias, other.count)


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
        experts: of a mixture's experts: parameter → a [experts, rank, inputs], b [experts, rank, outputs].
        prompt: [virtual tokens, features], of the input embedding: what stands at the first positions of a row.
    """

    low_rank: LowRank | None = None
    offset: torch.Tensor | None = None
    gain: torch.Tensor | None = None
    shift: torch.Tensor | None = None
    input_gain: torch.Tensor | None = None
    rows: Rows | None = None
    parameters: Mapping[str, torch.Tensor] = field(default_factory=dict)
    prompt: torch.Tensor | None = None
    experts: Mapping[str, LowRank] = field(default_factory=dict)

    @property
    def kinds(self) -> frozenset[DeltaKind]:
        """Return what it does to its module."""
        made = {
            DeltaKind.LOW_RANK: self.low_rank is not None,
            DeltaKind.EXPERTS: bool(self.experts),
            DeltaKind.OFFSET: self.offset is not None,
            DeltaKind.SHIFT: self.shift is not None,
            DeltaKind.GAIN: self.gain is not None or self.input_gain is not None,
            DeltaKind.WHOLE: self.rows is not None or bool(self.parameters),
            DeltaKind.PROMPT: self.prompt is not None,
        }
        return frozenset(kind for kind, there in made.items() if there)

    @property
    def additive(self) -> bool:
        """Tell whether the delta is ΔW·x + Δc: such a delta can be weighted, and added to others."""
        return self.kinds <= ADDITIVE

    @property
    def tensors(self) -> list[torch.Tensor]:
        """Return all tensors of the delta."""
        low_rank = [self.low_rank.a, self.low_rank.b] if self.low_rank else []
        rows = [self.rows.index, self.rows.weight, self.rows.bias] if self.rows else []
        vectors = [self.offset, self.gain, self.shift, self.input_gain, self.prompt, *self.parameters.values()]
        experts = [tensor for low in self.experts.values() for tensor in (low.a, low.b)]
        return [tensor for tensor in (*low_rank, *rows, *vectors, *experts) if tensor is not None]

    @property
    def largest(self) -> float:
        """Return a number that no value is beyond, in either direction; infinity when nobody looked."""
        if self.low_rank is None or self.offset is not None or self.experts or not self.additive:
            return math.inf
        return self.low_rank.largest

    @property
    def changes(self) -> bool:
        """Tell whether any of the delta is more than zeros and ones."""
        low_ranks = [*self.experts.values(), *([self.low_rank] if self.low_rank else [])]
        low_rank = any(bool(low.a.any() and low.b.any()) for low in low_ranks)
        gains = any(bool((gain != 1).any()) for gain in (self.gain, self.input_gain) if gain is not None)
        sums = any(bool(vector.any()) for vector in (self.offset, self.shift) if vector is not None)
        return low_rank or gains or sums or self.rows is not None or bool(self.parameters) or self.prompt is not None

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> ModuleDelta:
        """Return the delta with every tensor of floating point in another dtype or place, and `Rows.index` as it is."""

        def changed(value: torch.Tensor | None) -> torch.Tensor | None:
            return None if value is None else change(value)

        low_rank, rows = self.low_rank, self.rows
        return ModuleDelta(
            low_rank=low_rank and low_rank.map(change),
            offset=changed(self.offset),
            gain=changed(self.gain),
            shift=changed(self.shift),
            input_gain=changed(self.input_gain),
            rows=rows and replace(rows, weight=change(rows.weight), bias=changed(rows.bias)),
            prompt=changed(self.prompt),
            experts={name: low.map(change) for name, low in self.experts.items()},
            parameters={name: change(value) for name, value in self.parameters.items()},
        )

    def __or__(self, other: ModuleDelta) -> ModuleDelta:
        """Combine both deltas on one module: shifts add up, the other's rows stand over these.

        Raises ValueError for other parts that both deltas have.
        """
        parts: dict[str, Any] = {}
        for part in fields(self):
            mine, theirs = getattr(self, part.name), getattr(other, part.name)
            if part.name == "parameters" or (part.name == "experts" and not set(mine) & set(theirs)):
                parts[part.name] = {**mine, **theirs}
            elif mine is None or theirs is None:
                parts[part.name] = theirs if mine is None else mine
            elif part.name == "shift":
                parts[part.name] = mine + theirs
            elif part.name == "rows":
                parts[part.name] = mine.under(theirs)
            else:
                raise ValueError(part.name)
        return ModuleDelta(**parts)


@dataclass(frozen=True, eq=False)
class Prefix:
    """Keys and values that stand before a row's own (prefix tuning).

    Attributes:
        keys: [layers, heads, virtual tokens, features].
        values: [layers, heads, virtual tokens, features].
    """

    keys: torch.Tensor
    values: torch.Tensor

    @property
    def tokens(self) -> int:
        """Return the number of virtual tokens."""
        return self.keys.shape[2]

    def map(self, change: Callable[[torch.Tensor], torch.Tensor]) -> Prefix:
        """Return the prefix with both tensors changed."""
        return Prefix(change(self.keys), change(self.values))


@dataclass(frozen=True, eq=False)
class CompiledAdapter:
    """An adapter in the memory of the model's device, checked against the base it was compiled for."""

    facts: AdapterFacts
    modules: Mapping[str, ModuleDelta]
    """By the path of the module."""
    invocation: tuple[int, ...] = ()
    """It takes part from the last place on where a prompt says these tokens; nowhere when it does not (aLoRA)."""
    prefix: Prefix | None = None

    @property
    def bytes(self) -> int:
        """Return the bytes in the memory of the device."""
        return sum(tensor.nbytes for tensor in self._tensors())

    def to(self, device: torch.device) -> CompiledAdapter:
        """Return the adapter in the memory of this device; tensors that are there already are not copied."""
        moved = {path: _moved(delta, device) for path, delta in self.modules.items()}
        prefix = self.prefix and self.prefix.map(lambda tensor: tensor.to(device))
        return replace(self, modules=moved, prefix=prefix)

    def _tensors(self) -> Iterator[torch.Tensor]:
        for delta in self.modules.values():
            yield from delta.tensors
        if self.prefix is not None:
            yield from (self.prefix.keys, self.prefix.values)


def _moved(delta: ModuleDelta, device: torch.device) -> ModuleDelta:
    moved = delta.map(lambda tensor: tensor.to(device))
    return replace(moved, rows=moved.rows and replace(moved.rows, index=moved.rows.index.to(device)))
