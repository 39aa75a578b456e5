"""How many answers a pod works on at a time."""

from __future__ import annotations

import asyncio

from graft_runtime.errors import ErrorCode, GraftError

WAITING_PER_PLACE = 8
"""So many requests may wait for each place in the batch."""


class Admission:
    """Counts the answers that are awaited, and turns requests away.

    Args:
        max_sequences: places in the batch.
    """

    def __init__(self, max_sequences: int) -> None:
        self._capacity = max_sequences * (1 + WAITING_PER_PLACE)
        self._idle = asyncio.Event()
        self._entered = asyncio.get_running_loop().time()
        """When the last request came, by the event loop's clock."""
        self.in_flight = 0
        """Answers that are awaited, waiting ones included."""
        self.refusing = False
        """New requests are turned away."""

    def enter(self, count: int) -> None:
        """Count a request for this many answers, until `leave`. Raises GraftError: ShuttingDown, Overloaded."""
        if self.refusing:
            raise GraftError(
                ErrorCode.SHUTTING_DOWN, "this pod is shutting down", hint="try again: another one answers"
            )
        if self.in_flight and self.in_flight + count > self._capacity:
            raise GraftError(
                ErrorCode.OVERLOADED,
                f"{self.in_flight} requests are on their way here, the most is {self._capacity}",
                hint="try again later, or give the pool more replicas",
            )
        self.in_flight += count
        self._entered = asyncio.get_running_loop().time()

    def leave(self, count: int) -> None:
        """Take note that this many answers are awaited no longer."""
        self.in_flight -= count
        self._idle.set()

    async def wait_quiet(self, seconds: float) -> None:
        """Wait until no answer is awaited, and from now on for `seconds` no request has come."""
        loop = asyncio.get_running_loop()
        begun = loop.time()
        while self.in_flight or (rest := max(begun, self._entered) + seconds - loop.time()) > 0:
            if self.in_flight:
                self._idle.clear()
                await self._idle.wait()
            else:
                await asyncio.sleep(rest)
