"""The active bank: the columns of the adapters with running rows, side by side on every module.

A module has `a` [columns, input] and `b` [columns, output]. An adapter owns the same contiguous columns on all modules,
zeros where its rank is lower or the module is none of its own. The width of the bank is bucketed and follows what runs,
not what is mounted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.layout import LinearShape

NARROWEST = 64
WIDEST = 1024
"""Columns that requests can take, unless a single adapter may need more."""


@dataclass(frozen=True)
class RowAdapter:
    """One adapter of one row, and how much of it."""

    adapter: CompiledAdapter
    weight: float


@dataclass(eq=False)
class _Place:
    start: int
    columns: int
    holds: int = 0


@dataclass(frozen=True)
class Columns:
    """Which token takes which column of the bank, and how much.

    Attributes:
        taken: [tokens, width], bool.
        weight: [tokens, width].
    """

    taken: torch.Tensor
    weight: torch.Tensor

    def of(self, tokens: torch.Tensor) -> Columns:
        """Those of these tokens, [tokens]."""
        return Columns(self.taken[tokens], self.weight[tokens])


@dataclass(eq=False)
class Module:
    """One module's part of the bank.

    Attributes:
        a: [columns, input features].
        b: [columns, output features].
    """

    a: torch.Tensor
    b: torch.Tensor
    adapters: int = 0
    """Active ones with columns here."""


class Bank:
    """Columns as a resource: an adapter is active while requests hold it, and what does not fit waits.

    Args:
        shapes: of the modules, by path.
        max_rank: of one adapter.
        dtype: of the model.
        device: of the model.
    """

    def __init__(
        self, shapes: Mapping[str, LinearShape], *, max_rank: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        self._limit = _bucket(max(WIDEST, max_rank))
        self._dtype, self._device = dtype, device
        self._places: dict[CompiledAdapter, _Place] = {}
        self._owners: torch.Tensor | None = None
        self.modules = {path: self._module(shape) for path, shape in shapes.items()}
        self.width = 0
        """Columns that a step computes: the bucket of the highest that is owned."""

    @property
    def bytes_at_most(self) -> int:
        """At its widest."""
        features = sum(module.a.shape[1] + module.b.shape[1] for module in self.modules.values())
        return self._limit * features * self._dtype.itemsize

    @property
    def active(self) -> int:
        """Adapters."""
        return len(self._places)

    def can_ever_hold(self, adapters: Sequence[RowAdapter]) -> bool:
        """Whether one request's adapters fit when nothing else runs."""
        return sum(adapter.rank for adapter in {part.adapter for part in adapters}) <= self._limit

    def hold(self, adapters: Sequence[RowAdapter]) -> bool:
        """Makes these adapters active for one request. False, and nothing has changed, when they don't fit."""
        held: list[CompiledAdapter] = []
        for adapter in dict.fromkeys(part.adapter for part in adapters):
            if adapter not in self._places and not self._activate(adapter, self._limit):
                for other in held:
                    self._let_go(other)
                return False
            self._places[adapter].holds += 1
            held.append(adapter)
        return True

    def hold_for_trial(self, adapter: CompiledAdapter) -> None:
        """Makes it active even beyond the limit: a trial takes one step and waits for nobody."""
        if adapter not in self._places:
            self._activate(adapter, None)
        self._places[adapter].holds += 1

    def release(self, adapters: Sequence[RowAdapter]) -> None:
        """One request less holds these; the columns of those that nobody holds are zeroed."""
        for adapter in dict.fromkeys(part.adapter for part in adapters):
            self._let_go(adapter)

    def columns(self, rows: Sequence[Sequence[RowAdapter]], tokens: Sequence[int]) -> Columns | None:
        """What each token of a step takes; None when all of them are the base model's.

        Args:
            rows: the adapters of each row, all held.
            tokens: of each row.
        """
        if not any(rows):
            return None
        numbers = {adapter: number for number, adapter in enumerate(self._places)}
        weights = torch.zeros(len(rows), len(numbers) + 1)  # the last is nobody's
        for index, row in enumerate(rows):
            for part in row:
                weights[index, numbers[part.adapter]] += part.weight
        repeated = weights.repeat_interleave(torch.tensor(tokens), dim=0).to(self._device)
        weight = repeated[:, self._column_owner()].to(self._dtype)
        return Columns(weight != 0, weight)

    def _column_owner(self) -> torch.Tensor:
        """[width]: the number of the adapter that owns the column, or one past the last."""
        if self._owners is None:
            owners = torch.full((self.width,), len(self._places), dtype=torch.long)
            for number, place in enumerate(self._places.values()):
                owners[place.start : place.start + place.columns] = number
            self._owners = owners.to(self._device)
        return self._owners

    def _module(self, shape: LinearShape) -> Module:
        def zeros(features: int) -> torch.Tensor:
            return torch.zeros(0, features, dtype=self._dtype, device=self._device)

        return Module(zeros(shape.input_features), zeros(shape.output_features))

    def _activate(self, adapter: CompiledAdapter, limit: int | None) -> bool:
        """Copies the adapter into the lowest free columns that are contiguous."""
        start = self._free(adapter.rank)
        end = start + adapter.rank
        if limit is not None and end > limit:
            return False
        self._places[adapter] = _Place(start, adapter.rank)
        self._resize()
        for path, delta in adapter.low_rank.items():
            module = self.modules[path]
            module.adapters += 1
            module.a[start : start + delta.a.shape[0]] = delta.a
            module.b[start : start + delta.b.shape[0]] = delta.b
        return True

    def _free(self, columns: int) -> int:
        start = 0
        for place in sorted(self._places.values(), key=lambda place: place.start):
            if place.start - start >= columns:
                return start
            start = place.start + place.columns
        return start

    def _let_go(self, adapter: CompiledAdapter) -> None:
        place = self._places[adapter]
        place.holds -= 1
        if place.holds:
            return
        del self._places[adapter]
        for path in adapter.low_rank:
            module = self.modules[path]
            module.adapters -= 1
            module.a[place.start : place.start + place.columns] = 0
            module.b[place.start : place.start + place.columns] = 0
        self._resize()

    def _resize(self) -> None:
        """Sets the width, and makes room for it; what was made once stays, since the next request needs it soon."""
        self._owners = None
        highest = max((place.start + place.columns for place in self._places.values()), default=0)
        self.width = _bucket(highest) if highest else 0
        for module in self.modules.values():
            if module.a.shape[0] < self.width:
                module.a = _widened(module.a, self.width)
                module.b = _widened(module.b, self.width)


def _bucket(columns: int) -> int:
    width = NARROWEST
    while width < columns:
        width *= 2
    return width


def _widened(tensor: torch.Tensor, columns: int) -> torch.Tensor:
    wider = tensor.new_zeros(columns, tensor.shape[1])
    wider[: tensor.shape[0]] = tensor
    return wider
