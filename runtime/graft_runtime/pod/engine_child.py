"""Graft's own engine: a child process, spoken to over a socket pair."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from collections.abc import Callable

from graft_runtime.messages import Command, Event
from graft_runtime.pod.engine_connection import EngineConnection

ENDING_SECONDS = 5.0
"""From the end of the engine's messages to the end of its process."""


class EngineChild:
    """One engine process: see `EnginePort`."""

    def __init__(self) -> None:
        self._connection = EngineConnection()

    async def run(self, heard: Callable[[Event], None]) -> int:
        """Spawn the process and listen to it until it ends: see `EnginePort`.

        To be called on the main thread's event loop: the process dies with the thread that spawned it.
        """
        parent_end, child_end = socket.socketpair()
        descriptor = child_end.fileno()
        command = (sys.executable, "-m", "graft_runtime.engine", "--socket-fd", str(descriptor))
        with child_end:
            process = await asyncio.create_subprocess_exec(*command, pass_fds=[descriptor])
        stream = await asyncio.open_connection(sock=parent_end)
        try:
            await self._connection.listen(*stream, heard)
            # Not killed at once: `kill` reaps a process that has just ended, and its status would be lost.
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(ENDING_SECONDS):
                    await process.wait()
        finally:
            self._connection.close()
            if process.returncode is None:
                process.kill()
        return await process.wait()

    async def started(self) -> None:
        """Wait until the process is there."""
        await self._connection.opened()

    def send(self, command: Command) -> None:
        """Write a command to the socket."""
        self._connection.send(command)
