"""The connections of a port: how many there are, and how long a client may keep one waiting."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

HEAD_SECONDS = 20.0
"""From a connection's start, or the first byte of a request, until the request's head is whole; from an early answer
until the rest of the body has come."""
AGAIN_SECONDS = 10.0
"""A client that has been answered makes way so much later than one that was not: it is likely to ask again."""
READING_SECONDS = 30.0
"""For a client to read on, once as much of an answer waits for it as is kept, or once the answer has ended."""
READ_BYTES = 32 << 10
"""Read at a time: as long a head at most is taken, and half as much again."""
MAX_HEAD_BYTES = 16 << 10
"""Of a head that is not whole after the first of these reads."""
MAX_FIELDS = 256
"""Of one head."""
FEW_PIECES = 1024
PIECE_BYTES = 64
"""At least, on an average, of a body of more pieces: each takes as long as a kilobyte of a large one."""


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

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.conn = _Requests(h11.SERVER, MAX_HEAD_BYTES)

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
        for start in range(0, len(data), READ_BYTES):
            if not self.transport.is_closing():
                super().data_received(data[start : start + READ_BYTES])
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


class _Requests(h11.Connection):
    """The requests of a connection. One that takes much of this process' time and brings little is refused."""

    _pieces, _bytes = 0, 0
    """Of the body that comes."""

    def next_event(self) -> Any:
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._pieces = self._bytes = 0
            if len(event.headers) > MAX_FIELDS:
                raise h11.RemoteProtocolError(f"a head has more than {MAX_FIELDS} fields")
        elif isinstance(event, h11.Data):
            self._pieces, self._bytes = self._pieces + 1, self._bytes + len(event.data)
            if self._pieces > FEW_PIECES and self._bytes < PIECE_BYTES * self._pieces:
                raise h11.RemoteProtocolError(f"a body comes in pieces of less than {PIECE_BYTES} bytes")
        return event
