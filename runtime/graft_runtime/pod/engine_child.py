"""Graft's own engine: a child process, spoken to over a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
from collections.abc import Callable

from graft_runtime.messages import FRAME_HEADER_BYTES, Command, Event, decode_events, encode_command

logger = logging.getLogger(__name__)

ENDING_SECONDS = 5.0
"""From the end of the engine's messages to the end of its process."""


class EngineChild:
    """One engine process: see `EnginePort`."""

    def __init__(self) -> None:
        self._process: asyncio.subprocess.Process | None = None
        self._writer: asyncio.StreamWriter | None = None
        self._spawned = asyncio.Event()

    async def run(self, heard: Callable[[Event], None]) -> int:
        """Spawn the process and listen to it until it ends: see `EnginePort`.

        To be called on the main thread's event loop: the process dies with the thread that spawned it.
        """
        parent_end, child_end = socket.socketpair()
        descriptor = child_end.fileno()
        command = (sys.executable, "-m", "graft_runtime.engine", "--socket-fd", str(descriptor))
        with child_end:
            self._process = await asyncio.create_subprocess_exec(*command, pass_fds=[descriptor])
        reader, self._writer = await asyncio.open_connection(sock=parent_end)
        self._spawned.set()
        try:
            await _listen(reader, heard)
            # Not killed at once: `kill` reaps a process that has just ended, and its status would be lost.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING_SECONDS):
                    await self._process.wait()
        finally:
            self._writer.close()
            if self._process.returncode is None:
                self._process.kill()
        return await self._process.wait()

    async def started(self) -> None:
        """Wait until the process is there."""
        await self._spawned.wait()

    def send(self, command: Command) -> None:
        """Write a command to the socket."""
        assert self._writer is not None, "nothing is sent before the process is spawned"
        if not self._writer.is_closing():
            self._writer.write(encode_command(command))


async def _listen(reader: asyncio.StreamReader, heard: Callable[[Event], None]) -> None:
    try:
        while True:
            length = int.from_bytes(await reader.readexactly(FRAME_HEADER_BYTES), "big")
            for event in decode_events(await reader.readexactly(length)):
                heard(event)
    except (asyncio.IncompleteReadError, ConnectionError):
        logger.info("the engine process has closed its end")
