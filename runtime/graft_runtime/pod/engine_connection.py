"""The messages between a pod and its engine as frames on a stream, whichever way the engine was started."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from dataclasses import dataclass

from graft_runtime.messages import FRAME_HEADER_BYTES, MAX_FRAME_BYTES, Command, Event, decode_events, encode_command

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineConnection:
    """The pod's end of one stream."""

    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    async def listen(self, heard: Callable[[Event], None]) -> None:
        """Call `heard` with each event, in order, until the engine closes its end.

        Raises:
            ValueError: the engine has sent what is no event.
        """
        try:
            while True:
                length = int.from_bytes(await self.reader.readexactly(FRAME_HEADER_BYTES), "big")
                if length > MAX_FRAME_BYTES:
                    raise ValueError(
                        f"the engine has sent a message of {length} bytes, over the limit of {MAX_FRAME_BYTES}"
                    )
                for event in decode_events(await self.reader.readexactly(length)):
                    heard(event)
        except (asyncio.IncompleteReadError, ConnectionError):
            logger.info("the engine has closed its end")

    def send(self, command: Command) -> None:
        """Write a command; one to an engine that has closed its end is dropped."""
        if not self.writer.is_closing():
            self.writer.write(encode_command(command))

    def close(self) -> None:
        """Close the pod's end."""
        self.writer.close()
