"""Reads what others send, with bounds: of bytes, and of how deep JSON is nested."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from typing import Any

from pydantic_core import from_json

MAX_DEPTH = 100
"""Kubernetes' own objects are nested 30 deep, managedFields included. At most what pydantic's parser takes."""
TOO_DEEP = "(nested too deep to be read)"
"""Stands for what lies deeper."""
MAX_CUT_BYTES = 256 * 2**10
"""Of JSON that is read although parts of it are too deep: finding them takes a second for a MiB."""

_TOKENS = re.compile(rb'"(?:[^"\\]++|\\.)*+"|[\[\]{}]', re.DOTALL)


class TooLargeError(Exception):
    """More bytes came than anybody wants to read."""


async def read_body(pieces: AsyncIterator[bytes], most: int, take: Callable[[int], bool] = lambda _: True) -> bytes:
    """Read to the end.

    Args:
        take: called with the bytes of each piece; False: there is no room for it.

    Raises:
        TooLargeError: after more than `most` bytes, or where there is no room.
    """
    kept: list[bytes] = []
    size = 0
    async for piece in pieces:
        size += len(piece)
        if size > most:
            raise TooLargeError(f"it is larger than {most} bytes")
        if not take(len(piece)):
            raise TooLargeError("too much is being read at once")
        kept.append(piece)
    return b"".join(kept)


async def read_lines(pieces: AsyncIterator[bytes], most: int) -> AsyncIterator[bytes | None]:
    """Yield the lines of a stream without their ends; None in place of one of more than `most` bytes."""
    kept: list[bytes] = []
    size = 0
    async for piece in pieces:
        *ended, rest = piece.split(b"\n")
        for end in ended:
            line = None if size + len(end) > most else b"".join((*kept, end))
            kept, size = [], 0
            if line != b"":
                yield line
        size += len(rest)
        if size > most:
            kept = []
        else:
            kept.append(rest)
    if size:
        yield None if size > most else b"".join(kept)


def read_json(content: bytes) -> Any:
    """Read JSON that may be nested as deep as its author likes; what lies too deep is `TOO_DEEP`.

    Raises:
        ValueError: it is no JSON, or nested too deep and large.
    """
    try:
        return from_json(content)
    except ValueError:
        if len(content) > MAX_CUT_BYTES:
            raise
        return from_json(_cut(content))


def _cut(content: bytes) -> bytes:
    """Replace maps and lists below the deepest level that is read, without recursion."""
    stand_in = b'"' + TOO_DEEP.encode() + b'"'
    pieces: list[bytes] = []
    level = start = 0
    for token in _TOKENS.finditer(content):
        match token[0][:1]:
            case b"[" | b"{":
                level += 1
                if level == MAX_DEPTH + 1:
                    pieces += (content[start : token.start()], stand_in)
            case b"]" | b"}":
                if level == MAX_DEPTH + 1:
                    start = token.end()
                level -= 1
    return b"".join((*pieces, content[start:]))
