"""Steps of rows that decode, in few shapes and at the same addresses each time, so that a GPU can replay them.

A packed step takes any rows, and Python gives each kernel to the device: a GPU is done before Python is. So rows that
decode are padded to a power of two, and what they read is written where earlier steps of that shape read it.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from graft_runtime.model.bank import Bank
from graft_runtime.model.buffers import Buffers
from graft_runtime.runners.decoder.attention import Piece
from graft_runtime.runners.decoder.over_pages import PageAttention
from graft_runtime.runners.decoder.pages import Pages, pages_for
from graft_runtime.runners.decoder.places import Places
from graft_runtime.runners.decoder.step import PackedRow, Step


@dataclass(frozen=True, eq=False)
class Room:
    """What steps of one size share.

    Attributes:
        rows: of each step.
        columns: of the bank; 0 for rows of the base alone.
        pages: of each row.
        buffers: all that a step reads, beside the model, the bank, and keys and values.
        attention: over tables of `pages`.
    """

    rows: int
    columns: int
    pages: int
    buffers: Buffers
    attention: PageAttention


class StaticRooms:
    """Which steps are static, and what each is packed into.

    Args:
        kv: where sequences live.
        attention: over the places of `kv`.
        bank: of the model.
        most: rows of the largest step.
    """

    def __init__(self, kv: Pages, attention: PageAttention, bank: Bank, most: int) -> None:
        self._kv, self._attention, self._bank, self._most = kv, attention, bank, most
        self._rooms: dict[tuple[int, int, int], Room] = {}

    @property
    def sizes(self) -> list[int]:
        """Return how many rows static steps have, the most first."""
        return sorted({self._size(rows) for rows in range(1, self._most + 1)}, reverse=True)

    def room(self, rows: Sequence[PackedRow]) -> Room | None:
        """Return the room for a step of these rows; None when it can't be static.

        Each must decode one token, and what their adapters add must be in the bank's columns.
        """
        if len(rows) > self._most or not all(_decodes(row) for row in rows):
            return None
        adapted = any(row.adapters for row in rows)
        if adapted and self._bank.in_columns is None:
            return None
        key = (self._size(len(rows)), self._bank.width if adapted else 0, self._pages(rows))
        if key not in self._rooms:
            buffers = Buffers(self._attention.device)
            self._rooms[key] = Room(*key, buffers, self._attention.fixed(buffers, key[2]))
        return self._rooms[key]

    def padding(self, rows: int) -> list[PackedRow]:
        """Return rows that stand for none."""
        return [PackedRow(Piece(self._kv.spare, 0, 1), [0], (), answers=True)] * rows

    def shape(self, room: Room, step: Step) -> Hashable:
        """Return all that a pass over the tensors of a step depends on, beside what they hold."""
        size = (room.rows, room.columns, room.pages)
        if step.adapters is None:
            return size
        taken = step.adapters.all
        return *size, self._bank.in_columns, taken.hidden is None, taken.column_weights is None

    def _size(self, rows: int) -> int:
        return min(1 << (rows - 1).bit_length(), self._most)

    def _pages(self, rows: Sequence[PackedRow]) -> int:
        """Return the width of the tables: any, where pages are read in place; few, where they are copied."""
        most = pages_for(self._kv.longest)
        if self._attention.in_place:
            return most
        needed = max(pages_for(row.piece.end) for row in rows)
        return min(1 << (needed - 1).bit_length(), most)


def static_rooms(places: Places, bank: Bank, most: int) -> StaticRooms | None:
    """Return which steps are static, of `most` rows at most; None where keys and values are not in pages."""
    if isinstance(places.kv, Pages) and isinstance(places.attention, PageAttention):
        return StaticRooms(places.kv, places.attention, bank, most)
    return None


def _decodes(row: PackedRow) -> bool:
    """Tell whether the row is one token of which every adapter of the row takes part."""
    at = row.piece.start
    return row.piece.tokens == 1 and row.answers and all(part.start <= at for part in row.adapters)
