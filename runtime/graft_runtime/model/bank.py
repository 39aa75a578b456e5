"""The active bank: what the adapters with running rows add, side by side on every module.

An adapter owns the same contiguous columns on all modules, for its low rank, and one slot, for its vectors. The width
of the bank is bucketed and follows what runs, not what is mounted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.layout import LinearShape
from graft_runtime.model.bank_module import BankModule
from graft_runtime.model.buffers import Buffers
from graft_runtime.model.rows import AdapterInputs, Row, RowAdapter, TokenAdapters

NARROWEST = 16
WIDEST = 1024
"""Columns that requests can take, unless told otherwise."""


@dataclass(eq=False)
class _Place:
    start: int
    columns: int
    slot: int
    holds: int = 0


class Bank:
    """Columns as a resource: an adapter is active while requests hold it, and what does not fit waits.

    Args:
        shapes: of the linear modules, by path.
        max_rank: of one adapter.
        dtype: of the model.
        device: of the model.
        columns: that requests can take, unless a single adapter may need more.
    """

    def __init__(
        self,
        shapes: Mapping[str, LinearShape],
        *,
        max_rank: int,
        dtype: torch.dtype,
        device: torch.device,
        columns: int = WIDEST,
    ) -> None:
        self._limit = max(columns, max_rank)
        self._shapes, self._dtype, self.device = shapes, dtype, device
        self._places: dict[CompiledAdapter, _Place] = {}
        self._buffers = Buffers(device)
        self._filled: dict[Buffers, tuple[object, TokenAdapters]] = {}
        """What was filled last in each, and for which rows."""
        self._in_columns: tuple[int, frozenset[str] | None] = (0, frozenset())
        self.modules: dict[str, BankModule] = {}
        """Those that an active adapter has changed."""
        self.version = 0
        """Changes with the adapters that are active."""
        self.width = 0
        """Columns that a step computes: the bucket of the highest that is owned."""

    @property
    def bytes_at_most(self) -> int:
        """Return the bytes of the columns when the bank is at its widest."""
        features = sum(shape.input_features + shape.output_features for shape in self._shapes.values())
        return _bucket(self._limit) * features * self._dtype.itemsize

    @property
    def active(self) -> int:
        """Return how many adapters are active."""
        return len(self._places)

    def can_ever_hold(self, adapters: Sequence[RowAdapter]) -> bool:
        """Tell whether one request's adapters fit when nothing else runs."""
        return sum(adapter.facts.rank for adapter in {part.adapter for part in adapters}) <= self._limit

    def hold(self, adapters: Sequence[RowAdapter]) -> bool:
        """Make these adapters active for one request. Return False, and change nothing, when the adapters don't fit."""
        held: list[CompiledAdapter] = []
        for adapter in dict.fromkeys(part.adapter for part in adapters):
            if adapter not in self._places and not self._has_room_for(adapter):
                for other in held:
                    self._let_go(other)
                return False
            self._places[adapter].holds += 1
            held.append(adapter)
        return True

    def _has_room_for(self, adapter: CompiledAdapter) -> bool:
        """Make an adapter active. Return False when there are no columns for it, or no memory for more columns."""
        try:
            return self._activate(adapter, self._limit)
        except torch.OutOfMemoryError:
            return False

    def hold_for_trial(self, adapter: CompiledAdapter) -> None:
        """Make an adapter active even beyond the limit: a trial takes one step and waits for nobody."""
        if adapter not in self._places:
            self._activate(adapter, None)
        self._places[adapter].holds += 1

    def release(self, adapters: Sequence[RowAdapter]) -> None:
        """Let go of these adapters for one request; zero the columns of the adapters that nobody holds any more."""
        for adapter in dict.fromkeys(part.adapter for part in adapters):
            self._let_go(adapter)

    @property
    def in_columns(self) -> frozenset[str] | None:
        """Return the paths of the modules that active adapters change, None when one does so not by columns alone."""
        if self._in_columns[0] != self.version:
            used = {path: part for path, part in self.modules.items() if part.used}
            plain = all(part.columns_alone for part in used.values())
            self._in_columns = (self.version, frozenset(used) if plain else None)
        return self._in_columns[1]

    def inputs(self, rows: Sequence[Row], last: torch.Tensor, buffers: Buffers | None = None) -> AdapterInputs | None:
        """Fill what the modules read of a pass. What an earlier pass was given is overwritten.

        Args:
            rows: of the pass, in order; the bank holds their adapters.
            last: see `AdapterInputs`.
            buffers: to fill; None: the bank's own.

        Returns:
            None when all of the rows are the base model's.
        """
        if not any(row.adapters for row in rows):
            return None
        buffers = buffers or self._buffers
        partial = _partial(rows)
        key = (self.version, [(row.adapters, row.tokens) for row in rows])
        filled_for, filled = self._filled.get(buffers, (None, None))
        if partial or key != filled_for or filled is None:
            self._filled.pop(buffers, None)
            filled = self._fill(rows, buffers, partial=partial)
            self._filled[buffers] = (None if partial else key, filled)  # while the same rows decode, it stays
        at = [position for row in rows for position in range(row.start, row.start + row.tokens)]
        taken = replace(filled, positions=buffers.fill("positions of rows", at))
        uniform = not partial and all(row.adapters == rows[0].adapters for row in rows)
        return AdapterInputs(taken, [row.tokens for row in rows], last, uniform=uniform)

    def _fill(self, rows: Sequence[Row], buffers: Buffers, *, partial: bool) -> TokenAdapters:
        of_rows = self._slot_weights(rows)
        taken_by_all = not partial and all(weight for taken in of_rows for weight in taken[1:])
        whole = all(weight in (0, 1) for taken in of_rows for weight in taken)
        exact = _of_tokens(of_rows, rows)
        if partial:
            self._leave_out(exact, rows)
        tokens = exact.shape[0]
        weights = buffers.view("slot weights", *exact.shape, dtype=self._dtype).copy_(exact)
        columns = buffers.view("column weights", tokens, self.width, dtype=self._dtype)
        torch.index_select(weights, 1, self._column_owner(buffers), out=columns)
        hidden = torch.eq(columns, 0, out=buffers.view("hidden", tokens, self.width, dtype=torch.bool))
        slots = [slot for row in rows for slot in [self._slot_of(row)] * row.tokens]
        return TokenAdapters(
            None if taken_by_all else hidden,
            None if whole else columns,
            buffers.fill("slots", slots),
            weights,
            torch.empty(0),
            self._runs(rows) if self.device.type == "cpu" else None,
        )

    def _runs(self, rows: Sequence[Row]) -> torch.Tensor:
        """Return which tokens take which columns, as `TokenAdapters` has it."""
        runs: list[list[float]] = []
        first = 0
        for row in rows:
            for part in row.adapters:
                place = self._places[part.adapter]
                without = min(max(part.start - row.start, 0), row.tokens) if part.start else 0
                took = [place.start, place.columns, part.weight]
                if runs and not without and runs[-1][2:] == took and runs[-1][0] + runs[-1][1] == first:
                    runs[-1][1] += row.tokens
                else:
                    runs.append([first + without, row.tokens - without, *took])
            first += row.tokens
        return torch.tensor(runs, dtype=torch.float64)

    def slot(self, adapter: CompiledAdapter) -> int:
        """Return the slot of an active adapter."""
        return self._places[adapter].slot

    def _slot_weights(self, rows: Sequence[Row]) -> list[list[float]]:
        """Return how much each row takes of each slot; slot 0 is nobody's."""
        slots = 1 + max(place.slot for place in self._places.values())
        weights = [[0.0] * slots for _ in rows]
        for taken, row in zip(weights, rows, strict=True):
            for part in row.adapters:
                taken[self.slot(part.adapter)] += part.weight
        return weights

    def _leave_out(self, exact: torch.Tensor, rows: Sequence[Row]) -> None:
        """Zero the weights of the tokens before an adapter begins to take part."""
        first = 0
        for row in rows:
            for part in row.adapters:
                if part.start:
                    without = min(max(part.start - row.start, 0), row.tokens)
                    exact[first : first + without, self.slot(part.adapter)] = 0
            first += row.tokens

    def _slot_of(self, row: Row) -> int:
        """Return the slot whose vectors the row takes: that of its only adapter; 0 where there are none or several."""
        return self.slot(row.adapters[0].adapter) if len(row.adapters) == 1 else 0

    def _column_owner(self, buffers: Buffers) -> torch.Tensor:
        """Return the slot of the adapter that owns each column, [width]; 0: nobody owns the column."""
        owners = [0] * self.width
        for place in self._places.values():
            owners[place.start : place.start + place.columns] = [place.slot] * place.columns
        return buffers.fill("owners", owners)

    def _activate(self, adapter: CompiledAdapter, limit: int | None) -> bool:
        """Copy the adapter into the lowest free columns that are contiguous, and into the lowest free slot."""
        start = self._free(adapter.facts.rank)
        if limit is not None and start + adapter.facts.rank > limit:
            return False
        self._places[adapter] = _Place(start, adapter.facts.rank, self._free_slot())
        try:
            self._put(adapter, self._places[adapter])
        except torch.OutOfMemoryError:  # as if it had never been here
            self._take_out(adapter)
            raise
        return True

    def _put(self, adapter: CompiledAdapter, place: _Place) -> None:
        self._resize()
        for path, delta in adapter.modules.items():
            if path not in self.modules:
                shape, most = self._shapes.get(path), _bucket(self._limit)
                self.modules[path] = BankModule(path, shape, most, self._dtype, self.device)
            self.modules[path].put(adapter, delta, place.slot, place.start, self.width)

    def _free(self, columns: int) -> int:
        start = 0
        for place in sorted(self._places.values(), key=lambda place: place.start):
            if place.start - start >= columns:
                return start
            start = max(start, place.start + place.columns)
        return start

    def _free_slot(self) -> int:
        used = {place.slot for place in self._places.values()}
        return next(slot for slot in range(1, len(used) + 2) if slot not in used)

    def _let_go(self, adapter: CompiledAdapter) -> None:
        place = self._places[adapter]
        place.holds -= 1
        if not place.holds:
            self._take_out(adapter)

    def _take_out(self, adapter: CompiledAdapter) -> None:
        place = self._places.pop(adapter)
        for path in adapter.modules.keys() & self.modules.keys():
            self.modules[path].clear(adapter, place.slot, place.start, place.columns)
        self._resize()

    def _resize(self) -> None:
        """Set the width, after an adapter came or went."""
        self.version += 1
        highest = max((place.start + place.columns for place in self._places.values()), default=0)
        self.width = _bucket(highest) if highest else 0
        for module in self.modules.values():
            module.widen(self.width)


def _of_tokens(of_rows: Sequence[Sequence[float]], rows: Sequence[Row]) -> torch.Tensor:
    """Return for each token what its row has, float32 on the host."""
    of_row = [index for index, row in enumerate(rows) for _ in range(row.tokens)]
    return torch.tensor(of_rows)[of_row]


def _partial(rows: Sequence[Row]) -> bool:
    """Tell whether an adapter takes part in some tokens of its row only."""
    return any(part.start > row.start for row in rows for part in row.adapters if part.start)


def _bucket(columns: int) -> int:
    width = NARROWEST
    while width < columns:
        width *= 2
    return width
