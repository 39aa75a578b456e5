"""What a pod needs of an engine. Another engine is another implementation of this protocol."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from graft_runtime.messages import Command, Event


class EnginePort(Protocol):
    """One engine, from its start to its end.

    `graft_runtime.messages` says which events answer which commands. The answer to Start, BaseLoaded, tells what the
    engine is capable of; the pod sends it no adapter and no request that asks for more.
    """

    async def run(self, heard: Callable[[Event], None]) -> int | None:
        """Run the engine until it has ended. Cancelled, it ends the engine, or lets go of it, first.

        Returns:
            The exit status of its process; None where another than this one started it.

        Args:
            heard: called with each event, in order, on the event loop that runs this.
        """

    async def started(self) -> None:
        """Wait until the engine takes commands."""

    def send(self, command: Command) -> None:
        """Hand a command over, in order, once the engine has started. One to an engine that has ended is dropped."""
