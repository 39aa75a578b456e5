"""Server-sent events, and clients that go away."""

from __future__ import annotations

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping
from typing import Any, NoReturn, TypeVar

from fastapi import Response
from starlette.types import Receive, Scope, Send

Result = TypeVar("Result")

CLIENT_GONE = 499
"""The status that is logged for a request whose client went away; nobody sees it."""


SILENT_SECONDS = 15.0
"""Of a stream, until a comment goes out: proxies cut what is silent for a minute, browsers are told to wait so long."""
COMMENT = b": waiting\n\n"
_LINE_ENDS = re.compile("[\x7f-\x9f\u2028\u2029]")
"""What readers may split lines at, or a terminal obeys, beside what JSON escapes by itself."""


class ClientGoneError(Exception):
    """Nobody waits for the answer any more."""


async def unless(work: Coroutine[Any, Any, Result], *ends: Coroutine[Any, Any, NoReturn]) -> Result:
    """Return the result of `work`, which is cancelled when one of `ends` raises; then that is raised."""
    working, ending = asyncio.create_task(work), [asyncio.create_task(end) for end in ends]
    try:
        await asyncio.wait({working, *ending}, return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            next(end for end in ending if end.done()).result()
        return working.result()
    finally:
        for task in (working, *ending):
            task.cancel()
        await asyncio.gather(working, *ending, return_exceptions=True)
        del working, ending, task  # each holds what it raised, and what is raised holds this frame


async def disconnected(receive: Receive) -> NoReturn:
    """Wait until the client goes away. The request's body must have been read.

    Raises:
        ClientGoneError
    """
    while (await receive())["type"] != "http.disconnect":
        pass
    raise ClientGoneError


def event(value: Mapping[str, Any], name: str | None = None) -> bytes:
    """Encode one event, with its name where it has one: one line to every reader, all else as it is."""
    text = json.dumps(value, ensure_ascii=False, separators=(",", ":"))
    line = _LINE_ENDS.sub(lambda found: f"\\u{ord(found[0]):04x}", text)
    named = f"event: {name}\n" if name is not None else ""
    return f"{named}data: {line}\n\n".encode()


DONE = b"data: [DONE]\n\n"


class EventStream(Response):
    """An answer that goes out as it comes.

    Args:
        events: encoded ones.
        closed: called once at the end, however it comes.
    """

    media_type = "text/event-stream"

    def __init__(self, events: AsyncIterator[bytes], headers: Mapping[str, str], closed: Callable[[], None]) -> None:
        super().__init__(None, 200, {"Cache-Control": "no-cache", **headers})
        del self.headers["content-length"]
        self._events, self._closed = events, closed
        self._silent = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await send({"type": "http.response.start", "status": 200, "headers": self.raw_headers})
            await unless(self._send_all(send), disconnected(receive), self._comment(send))
        except (ClientGoneError, OSError):
            return
        finally:
            self._closed()

    async def _send_all(self, send: Send) -> None:
        async for content in self._events:
            self._silent = False
            await send({"type": "http.response.body", "body": content, "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _comment(self, send: Send) -> NoReturn:
        while True:
            self._silent = True
            await asyncio.sleep(SILENT_SECONDS)
            if self._silent:
                await send({"type": "http.response.body", "body": COMMENT, "more_body": True})
