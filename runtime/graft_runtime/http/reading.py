"""The bodies of requests as they come: within a size, a time, and the memory that all of them may take."""

from __future__ import annotations

import asyncio
import contextlib
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass

from fastapi import Request
from starlette.requests import ClientDisconnect

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.streaming import ClientGoneError

BODY_SECONDS = 60.0
PATIENT_SECONDS = 5.0
"""A body that has been coming for longer makes way where another finds no room."""
SMALL_BODY_BYTES = 64 << 10
"""Of each body, what there is room for whatever others take: as many as there may be connections."""


@dataclass(eq=False)
class _Coming:
    """A body that is not whole yet."""

    began: float
    deadline: asyncio.Timeout
    taken: int = 0
    """Bytes of the room that all share."""


class Bodies:
    """Reads the bodies of one port.

    Args:
        most_bytes: of one body.
        at_once_bytes: of all bodies that are being read or parsed, beyond what is small.
    """

    def __init__(self, most_bytes: int, at_once_bytes: int) -> None:
        self._most, self._room = most_bytes, at_once_bytes
        self._coming: list[_Coming] = []
        """The one that has been coming longest first."""

    @contextlib.asynccontextmanager
    async def read(self, request: Request) -> AsyncIterator[bytes]:
        """Read the request's body; its memory is counted until the block ends.

        Raises:
            GraftError: BodyTooLarge; InvalidRequest, when it is too slow; Overloaded, when others take the memory.
            ClientGoneError: before it was whole.
        """
        announced = request.headers.get("content-length", "")
        self._check_size(int(announced) if announced.isdecimal() else 0)
        content, taken, began = bytearray(), 0, asyncio.get_running_loop().time()
        try:
            async with asyncio.timeout(BODY_SECONDS) as deadline:
                coming = _Coming(began, deadline)
                self._coming.append(coming)
                try:
                    async for chunk in _unpacked(request):
                        content += chunk
                        self._check_size(len(content))
                        self._take(coming, max(0, len(content) - SMALL_BODY_BYTES) - coming.taken)
                finally:
                    self._coming.remove(coming)
                    taken = coming.taken
            whole = bytes(content)
            content.clear()  # each byte is held once while it is parsed
            yield whole
        except TimeoutError:
            seconds = asyncio.get_running_loop().time() - began
            what = f"the request's body was not whole after {seconds:.3g} s"
            raise GraftError(ErrorCode.INVALID_REQUEST, what, hint="send it faster, or less of it") from None
        except ClientDisconnect:
            raise ClientGoneError from None
        finally:
            self._room += taken

    def _take(self, coming: _Coming, more: int) -> None:
        if more > self._room:
            self._make_room(coming, more)
        if more > self._room:
            raise GraftError(
                ErrorCode.OVERLOADED,
                "the bodies of other requests take all memory that there is for them",
                hint="try again, or send less at once",
            )
        self._room -= more
        coming.taken += more

    def _make_room(self, wanting: _Coming, wanted: int) -> None:
        """Give up bodies that have been coming for long, until there is room for so much."""
        now = asyncio.get_running_loop().time()
        for one in self._coming:
            if wanted > self._room and one is not wanting and one.taken and now - one.began > PATIENT_SECONDS:
                one.deadline.reschedule(now)
                self._room += one.taken
                one.taken = 0

    def _check_size(self, size: int) -> None:
        if size > self._most:
            raise GraftError(
                ErrorCode.BODY_TOO_LARGE,
                f"the request's body has more than {self._most} bytes",
                hint="send less at once",
            )


async def _unpacked(request: Request) -> AsyncIterator[bytes]:
    """Yield the body in pieces; what is packed comes piece by piece as well, so that others go on meanwhile.

    Raises:
        GraftError: InvalidRequest, for a coding other than gzip, and for what is no gzip.
    """
    coding = request.headers.get("content-encoding", "identity").lower()
    if coding == "identity":
        async for chunk in request.stream():
            yield chunk
        return
    if coding not in {"gzip", "x-gzip"}:
        what = f"the request's body has `Content-Encoding` `{coding}`, expected gzip or none"
        raise GraftError(ErrorCode.INVALID_REQUEST, what, hint="send it as it is, or in gzip")
    gzip = zlib.decompressobj(wbits=zlib.MAX_WBITS | 16)
    async for chunk in request.stream():
        packed = chunk
        while packed and not gzip.eof:
            try:
                piece = gzip.decompress(packed, SMALL_BODY_BYTES)
            except zlib.error as error:
                raise _no_gzip(str(error)) from None
            yield piece
            packed = gzip.unconsumed_tail
            await asyncio.sleep(0)
        if packed or gzip.unused_data:
            raise _no_gzip("more follows its end")
    if not gzip.eof:
        raise _no_gzip("it ends too early")


def _no_gzip(why: str) -> GraftError:
    what = f"the request's body is no gzip, which its `Content-Encoding` says: {why}"
    return GraftError(ErrorCode.INVALID_REQUEST, what, hint="send it as it is, or in gzip")
