"""An engine that somebody else starts, in a container of its own: spoken to over a Unix socket that it listens on."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path

from graft_runtime.messages import Command, Event
from graft_runtime.pod.engine_connection import EngineConnection

logger = logging.getLogger(__name__)

LOOK_SECONDS = 0.2
"""Between two looks for an engine that does not listen yet."""


class EngineSocket:
    """One engine at a Unix socket: see `EnginePort`. It ends when the connection does.

    Args:
        path: of the socket.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._connection = EngineConnection()

    async def run(self, heard: Callable[[Event], None]) -> None:
        """Connect to the engine, once it listens, and listen to it until it ends: see `EnginePort`."""
        stream = await self._connect()
        try:
            await self._connection.listen(*stream, heard)
        finally:
            self._connection.close()

    async def started(self) -> None:
        """Wait until the engine listens."""
        await self._connection.opened()

    def send(self, command: Command) -> None:
        """Write a command to the socket."""
        self._connection.send(command)

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        waiting = False
        while True:
            try:
                return await _open(self._path)
            except (FileNotFoundError, ConnectionRefusedError):
                if not waiting:
                    logger.info("waiting for an engine to listen on %s", self._path)
                waiting = True
            await asyncio.sleep(LOOK_SECONDS)


async def _open(path: Path) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Connect to a socket, however long its path is: an address has 108 bytes at most."""
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        return await asyncio.open_unix_connection(f"/proc/self/fd/{directory}/{path.name}")
    finally:
        os.close(directory)
