"""One proxied connection: bytes both ways, each direction closed by itself."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import struct
from collections.abc import Sequence

from graft_local.services.routes import Address

_CONNECT_SECONDS = 5.0
_CHUNK = 65536
_RESET = struct.pack("ii", 1, 0)


async def forward(client: asyncio.StreamReader, back: asyncio.StreamWriter, targets: Sequence[Address]) -> None:
    """Connect to the first target that answers, and pass bytes until both sides are done.

    With no target, or none that answers, the client's connection is reset.
    """
    connected = await _connect(targets)
    if connected is None:
        _reset(back)
        return
    answer, forth = connected
    pumps = [asyncio.create_task(_pump(client, forth)), asyncio.create_task(_pump(answer, back))]
    try:
        await asyncio.gather(*pumps)
        for writer in (back, forth):
            with contextlib.suppress(OSError):
                writer.close()
                await writer.wait_closed()
    except OSError:  # one side broke off: so does the other
        _reset(back)
        _reset(forth)
    finally:
        for pump in pumps:
            pump.cancel()
        await asyncio.gather(*pumps, return_exceptions=True)
        for writer in (back, forth):
            writer.transport.abort()


async def _connect(targets: Sequence[Address]) -> tuple[asyncio.StreamReader, asyncio.StreamWriter] | None:
    for host, port in targets:
        try:
            async with asyncio.timeout(_CONNECT_SECONDS):
                return await asyncio.open_connection(host, port)
        except (OSError, TimeoutError):
            continue
    return None


async def _pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
    while chunk := await source.read(_CHUNK):
        sink.write(chunk)
        await sink.drain()
    with contextlib.suppress(OSError):
        sink.write_eof()


def _reset(writer: asyncio.StreamWriter) -> None:
    """Close at once, so that the other side sees a reset rather than an empty answer."""
    raw = writer.get_extra_info("socket")
    if raw is not None:
        with contextlib.suppress(OSError):
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET)
    writer.transport.abort()
