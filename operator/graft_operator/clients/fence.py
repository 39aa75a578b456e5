"""Until when this process may write. Requests that change something ask here at the last moment before they are sent.

A process that was stopped or starved for longer than its lease lasts goes on in the middle of what it did: it is not
enough to ask when a pass begins.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from types import SimpleNamespace

import aiohttp

READS = frozenset({"GET", "HEAD", "OPTIONS"})


class NotLeadingError(aiohttp.ClientError):
    """The request was not sent: another operator may lead by now."""

    def __init__(self) -> None:
        super().__init__("not sent: this operator does not lead, or not any more")


class Fence:
    """Closed at first; open until the time that `open_until` names.

    Args:
        clock: seconds that only grow, also while the process is stopped.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._until = float("-inf")

    def open_until(self, until: float) -> None:
        self._until = until

    def close(self) -> None:
        self._until = float("-inf")

    @property
    def seconds_left(self) -> float:
        return self._until - self._clock()

    def trace(self) -> aiohttp.TraceConfig:
        """Return what makes a session of aiohttp refuse requests that change something while the fence is closed.

        It asks once the request has its connection, which may take seconds: what follows is to send it.
        """
        config = aiohttp.TraceConfig()

        async def started(
            _: aiohttp.ClientSession, context: SimpleNamespace, request: aiohttp.TraceRequestStartParams
        ) -> None:
            context.changes = request.method not in READS

        async def connected(_: aiohttp.ClientSession, context: SimpleNamespace, __: object) -> None:
            if context.changes and self.seconds_left <= 0:
                raise NotLeadingError

        config.on_request_start.append(started)
        config.on_connection_create_end.append(connected)
        config.on_connection_reuseconn.append(connected)
        return config
