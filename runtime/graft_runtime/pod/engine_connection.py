"""The messages between a pod and its engine as frames on a stream, whichever way the engine was started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable

from graft_runtime.messages import FRAME_HEADER_BYTES, MAX_FRAME_BYTES, Command, Event, decode_events, encode_command

logger = logging.getLogger(__name__)


class EngineConnection:
    """The pod's end of one stream, once there is one."""

    def __init__(self) -> None:
        self._writer: asyncio.StreamWriter | None = None
        self._opened = asyncio.Event()

    async def listen(
        self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, heard: Callable[[Event], None]
    ) -> None:
        """Call `heard` with each event, in order, until the engine closes its end.

        Args:
            reader: of the stream.
            writer: of the stream, for commands from now on.

        Raises:
            ValueError: the engine has sent what is no event.
        """
        self._writer = writer
        self._opened.set()
        try:
            while True:
                length = int.from_bytes(await reader.readexactly(FRAME_HEADER_BYTES), "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(
                        f"the engine has sent a message of {length} bytes, over the limit of {MAX_FRAME_BYTES}"
                    )
                for event in decode_events(await reader.readexactly(length)):
                    heard(event)
        except (asyncio.IncompleteReadError, ConnectionError):
            logger.info("the engine has closed its end")

    async def opened(self) -> None:
        """Wait until there is a stream."""
        await self._opened.wait()

    def send(self, command: Command) -> None:
        """Write a command; one to an engine that has closed its end is dropped."""
        assert self._writer is not None, "nothing is sent before the stream is open"
        if not self._writer.is_closing():
            self._writer.write(encode_command(command))

    def close(self) -> None:
        """Close the pod's end."""
        if self._writer is not None:
            self._writer.close()
