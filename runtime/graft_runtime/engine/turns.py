"""Whose turn it is: among those that wait, each set of adapters gets as much of the engine as any other."""

from __future__ import annotations

from collections.abc import Hashable


class Turns:
    """Start-time fair queueing (Goyal, Vin and Cheng, 1996): the lowest turn is next.

    A turn is a number of tokens, which count less where the share is larger. A request's is where those of the same
    adapters before it end, and no lower than that of the last request that was started: who did not ask has saved
    nothing up.
    """

    def __init__(self) -> None:
        self._now = 0
        self._ends: dict[Hashable, int] = {}

    def of(self, whose: Hashable, tokens: int, share: int = 1) -> int:
        """Return the turn of a request that costs so many tokens, by its share."""
        turn = max(self._now, self._ends.get(whose, 0))
        self._ends[whose] = turn + -(-tokens // share)
        return turn

    def started(self, turn: int) -> None:
        """Take note that a request was started in its turn."""
        self._now = max(self._now, turn)
        self._ends = {whose: end for whose, end in self._ends.items() if end > self._now}
