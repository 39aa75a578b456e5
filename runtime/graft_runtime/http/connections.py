"""The connections of a port: how many there are, and how long a client may keep one waiting."""

from __future__ import annotations

import asyncio

from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""From a connection's start, or the first byte of a request, until the request's head is whole; from an early answer
until the rest of the body has come."""
AGAIN_SECONDS = 10.0
"""A client that has been answered makes way so much later than one that was not: it is likely to ask again."""
READING_SECONDS = 30.0
"""For a client to read on, once as much of an answer waits for it as is kept, or once the answer has ended."""


class Connection(H11Protocol):
    """One connection of HTTP/1.1. It is cut where the client keeps it waiting.

    `limit_concurrency` of the configuration is one more than there may be. Where there are as many, a new one takes the
    place of the one whose client has kept the server waiting longest: whoever only holds connections keeps nobody out,
    and ends no connection of those who ask again and again.
    """

    _refused = False
    _waits_since: float | None = None
    """When the server began to wait for the client, by the event loop's clock; AGAIN_SECONDS later where the client
    has been answered. None while the client waits."""
    _head: asyncio.TimerHandle | None = None
    _reading: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        assert self.limit_concurrency is not None, "each port has a limit"
        if len(self.connections) + 1 >= self.limit_concurrency and not self._take_place():
            self._refused = True
            transport.abort()
            return
        super().connection_made(transport)
        self._waits_since = self.loop.time()
        self._await_head()

    def _take_place(self) -> bool:
        """End the connection whose client is awaited longest. Return whether there was one."""
        awaited = [one for one in self.connections if isinstance(one, Connection) and one._waits_since is not None]
        if not awaited:
            return False
        longest = min(awaited, key=lambda one: one._waits_since or 0.0)
        self.connections.discard(longest)
        longest.transport.abort()
        return True

    def connection_lost(self, exc: Exception | None) -> None:
        for timer in (self._head, self._reading):
            if timer is not None:
                timer.cancel()
        if not self._refused:
            super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        super().data_received(data)
        if self.cycle is not None and not self.cycle.response_complete:
            if self._head is not None:
                self._head.cancel()
            self._head = None
        else:
            self._await_head()
        self._note_who_waits()

    def pause_writing(self) -> None:
        super().pause_writing()
        self._await_reading()

    def resume_writing(self) -> None:
        super().resume_writing()
        if self._reading is not None:
            self._reading.cancel()
            self._reading = None
        self._note_who_waits()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._note_who_waits()
        if self._waits_since is not None and not self.cycle.more_body:
            self._waits_since = self.loop.time() + AGAIN_SECONDS
        if self.transport.get_write_buffer_size():
            self._await_reading()
        if self.cycle.more_body:  # answered before its end: what is left of it is not waited for either
            self._await_head()

    def _note_who_waits(self) -> None:
        """Take note of whether the client is awaited: its request, the rest of it, or that it reads the answer."""
        answering = self.cycle is not None and not self.cycle.response_complete and not self.cycle.more_body
        if answering and self._reading is None:
            self._waits_since = None
        elif self._waits_since is None:
            self._waits_since = self.loop.time()

    def _await_head(self) -> None:
        if self._head is None:
            self._head = self.loop.call_later(HEAD_SECONDS, self.transport.abort)

    def _await_reading(self) -> None:
        if self._reading is None:
            self._reading = self.loop.call_later(READING_SECONDS, self._check_read)
        self._note_who_waits()

    def _check_read(self) -> None:
        self._reading = None
        if self.transport.get_write_buffer_size():
            self.transport.abort()
