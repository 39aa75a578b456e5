"""How fast places in the batch become free, and how many requests may therefore wait for one. Pure."""

from __future__ import annotations

import math

WAIT_SECONDS = 120.0
"""Whoever comes may wait as long for a place, at the pace at which answers end."""
WAITING_AT_LEAST = 8
"""So many may wait for each place at any pace."""
WAITING_AT_MOST = 32
"""What a burst may come to for each place, so that what waits has a bound."""
PACE_SECONDS = 60.0
"""Of a queue's past, what its pace is taken from: after that, what lies further back counts half."""


class Turnover:
    """The pace at which answers end while others wait. Times are seconds of one clock.

    Those that run count as if they were about to end: so little has ended at the beginning of a burst.

    Args:
        places: in the batch.
    """

    def __init__(self, places: int) -> None:
        self._places = places
        self._since: float | None = None
        """When requests began to wait; None: none does."""
        self._ended = 0.0

    def entered(self, in_flight: int, now: float) -> None:
        """Take note of a request: there are `in_flight` with it."""
        if in_flight > self._places and self._since is None:
            self._since, self._ended = now, 0.0

    def left(self, count: int, in_flight: int, now: float) -> None:
        """Take note that so many answers have ended: there are `in_flight` without them."""
        if in_flight <= self._places:
            self._since = None
        if self._since is None:
            return
        self._ended += count
        if (elapsed := now - self._since) > PACE_SECONDS:
            self._since, self._ended = now - elapsed / 2, self._ended / 2

    def capacity(self, now: float) -> int:
        """Return how many answers may be awaited at a time, those that run included."""
        waiting = self._pace(now) * WAIT_SECONDS
        least, most = self._places * WAITING_AT_LEAST, self._places * WAITING_AT_MOST
        return self._places + int(min(max(waiting, least), most))

    def seconds(self, answers: int, now: float) -> float:
        """Return how long it will take until so many more have ended."""
        return answers / self._pace(now)

    def _pace(self, now: float) -> float:
        """Return how many answers end in a second."""
        elapsed = 0.0 if self._since is None else now - self._since
        return (self._ended + self._places) / elapsed if elapsed else math.inf
