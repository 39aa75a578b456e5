"""Clients that send and read as slowly, as little and as wrongly as they like: a seed is a client."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import string
from dataclasses import dataclass

PAUSE_SECONDS = 0.3
"""The longest between two pieces."""
LINGERING_SECONDS = 60.0
"""After which a client that is neither answered nor cut was forgotten."""


@dataclass(frozen=True)
class Heard:
    """What became of a client.

    Attributes:
        seed: the client.
        honest: whether it sent a whole request and read the answer.
        text: what it asked for.
        content: all that came.
    """

    seed: int
    honest: bool
    text: str
    content: bytes

    @property
    def answers(self) -> list[bytes]:
        """Return what came, one for each answer."""
        return [b"HTTP/1.1 " + one for one in self.content.split(b"HTTP/1.1 ")[1:]]


async def visit(address: str, port: int, seed: int) -> Heard:
    """Be a client once. Raises TimeoutError where the server forgets it."""
    chance = random.Random(seed)
    text = "".join(chance.choices(string.ascii_letters, k=chance.randrange(1, 60)))
    request, honest = _request(chance, text)
    reader, writer = await asyncio.open_connection(address, port)
    content = b""
    try:
        async with asyncio.timeout(LINGERING_SECONDS):
            with contextlib.suppress(OSError):
                await _send(chance, writer, request)
                if not honest and chance.random() < 0.2:
                    writer.transport.abort()
                    return Heard(seed, honest, text, b"")
                while piece := await reader.read(chance.choice((1, 7, 1 << 16))):
                    content += piece
                    if honest and b"\r\n\r\n" in content and content.endswith(b"}"):
                        break
                    await asyncio.sleep(chance.choice((0, 0, 0.001)))
    finally:
        writer.close()
    return Heard(seed, honest, text, content)


async def _send(chance: random.Random, writer: asyncio.StreamWriter, request: bytes) -> None:
    while request:
        size = chance.choice((1, 10, 40, 1 << 16))
        writer.write(request[:size])
        await writer.drain()
        request = request[size:]
        await asyncio.sleep(chance.choice((0, 0, 0, PAUSE_SECONDS)))


def _request(chance: random.Random, text: str) -> tuple[bytes, bool]:
    """Return what a client sends, and whether it is a request."""
    body = json.dumps({"model": "tiny", "prompt": text, "max_tokens": len(text)}).encode()
    chunked = chance.random() < 0.3
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
    if chunked:
        cuts = sorted(chance.randrange(len(body) + 1) for _ in range(3))
        parts = [body[a:b] for a, b in zip((0, *cuts), (*cuts, len(body)), strict=True) if a < b]
        sent = b"Transfer-Encoding: chunked\r\n\r\n" + b"".join(b"%x\r\n%s\r\n" % (len(part), part) for part in parts)
        whole = head + sent + b"0\r\n\r\n"
    else:
        whole = head + b"Content-Length: %d\r\n\r\n" % len(body) + body
    if chance.random() < 0.5:
        return whole, True
    at = chance.randrange(len(whole))
    return chance.choice(
        (
            whole[:at],
            whole[:at] + chance.randbytes(4) + whole[at:],
            chance.randbytes(200),
            head + b"Content-Length: -1\r\n\r\n",
            head + b"Content-Length: 5, 6\r\n\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n" + body,
            head + b"Transfer-Encoding: chunked\r\n\r\n5;" + b"e" * 70_000,
            head + b"X: " + b"h" * 100_000 + b"\r\n\r\n",
            b"GET /" + b"p" * 70_000 + b" HTTP/1.1\r\n\r\n",
            head + b"Expect: 100-continue\r\nContent-Length: 40\r\n\r\n",
            head + b"Content-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body,
            b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
            b"",
        )
    ), False
