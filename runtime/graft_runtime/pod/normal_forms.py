"""An engine that takes normal forms only: adapters are converted, in a process of their own, before it gets them."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Callable
from pathlib import Path

import msgspec

from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.errors import GraftError
from graft_runtime.messages import (
    FRAME_HEADER_BYTES,
    BaseLoaded,
    Command,
    EngineFault,
    Event,
    Mount,
    Mounted,
    MountFailed,
    Start,
    Unmounted,
    decode_events,
)
from graft_runtime.one_shot import run_once
from graft_runtime.pod.engine_port import EnginePort

logger = logging.getLogger(__name__)

CONVERSION_SECONDS = 300.0
CONVERTIBLE = frozenset({DeltaKind.LOW_RANK, DeltaKind.WHOLE})
"""What a normal form may be made of. Not all that is Whole is a low rank: the conversion refuses the rest."""


class NormalForms:
    """The engine, with adapters converted on their way to it where it asks for that: see `EnginePort`.

    Args:
        engine: that takes the normal forms.
        directory: for them, by digest; what an earlier process left there is removed.
    """

    def __init__(self, engine: EnginePort, directory: Path) -> None:
        self._engine, self._directory = engine, directory
        self._heard: Callable[[Event], None] = lambda event: None
        self._start: Start | None = None
        self._loaded: BaseLoaded | None = None
        """Of an engine that takes normal forms only; None for any other, and before its base serves."""
        self._facts: dict[str, AdapterFacts] = {}
        """Of the adapters that the normal forms were made of, by digest."""
        self._one = asyncio.Lock()
        self._conversions: set[asyncio.Task[None]] = set()

    async def run(self, heard: Callable[[Event], None]) -> int | None:
        """Run the engine: see `EnginePort`."""
        self._heard = heard
        shutil.rmtree(self._directory, ignore_errors=True)
        try:
            return await self._engine.run(self._hear)
        finally:
            for task in self._conversions:
                task.cancel()

    async def started(self) -> None:
        """Wait until the engine takes commands."""
        await self._engine.started()

    def send(self, command: Command) -> None:
        """Hand a command over; a Mount after the conversion, which nothing that follows has to wait for."""
        if isinstance(command, Start):
            self._start = command
        if isinstance(command, Mount) and self._loaded is not None:
            task = asyncio.create_task(self._convert(command, self._loaded))
            self._conversions.add(task)
            task.add_done_callback(self._conversions.discard)
        else:
            self._engine.send(command)

    def _hear(self, event: Event) -> None:
        match event:
            case BaseLoaded() if event.capabilities.takes_normal_forms:
                self._loaded = event
                capabilities = msgspec.structs.replace(event.capabilities, deltas=CONVERTIBLE)
                event = msgspec.structs.replace(event, capabilities=capabilities)
            case Mounted(digest=digest) if digest in self._facts:
                event = msgspec.structs.replace(event, facts=self._facts[digest])
            case MountFailed(digest=digest) | Unmounted(digest=digest):
                self._forget(digest)
        self._heard(event)

    async def _convert(self, mount: Mount, loaded: BaseLoaded) -> None:
        async with self._one:  # each has torch in memory
            event = await self._converted(mount, loaded)
        if isinstance(event, MountFailed):
            self._forget(mount.digest)
            self._heard(event)
        else:
            self._facts[mount.digest] = event.facts
            self._engine.send(Mount(mount.digest, str(self._place(mount.digest)), mount.name))

    async def _converted(self, mount: Mount, loaded: BaseLoaded) -> Mounted | MountFailed:
        assert self._start is not None, "its base is loaded"
        self._directory.mkdir(parents=True, exist_ok=True)
        options = {
            "base": self._start.directory,
            "adapter": mount.directory,
            "output": str(self._place(mount.digest)),
            "name": mount.name,
            "digest": mount.digest,
            "dtype": loaded.dtype,
            "task": loaded.task.value,
            "max-rank": str(self._start.limits.max_rank),
        }
        arguments = [f"--{name}={value}" for name, value in options.items()]
        what = f"the conversion of adapter `{mount.name}`"
        try:
            return await run_once(
                ["-m", "graft_runtime.compiler", *arguments], _outcome, what=what, seconds=CONVERSION_SECONDS
            )
        except GraftError as error:
            return MountFailed(mount.digest, EngineFault.of(error))

    def _forget(self, digest: str) -> None:
        self._facts.pop(digest, None)
        shutil.rmtree(self._place(digest), ignore_errors=True)

    def _place(self, digest: str) -> Path:
        return self._directory / digest.removeprefix("sha256:")


def _outcome(output: bytes) -> Mounted | MountFailed:
    """Read what the conversion tells. Raises ValueError."""
    events = decode_events(output[FRAME_HEADER_BYTES:])
    if len(events) != 1 or not isinstance(events[0], Mounted | MountFailed):
        raise ValueError("expected one Mounted or MountFailed")
    return events[0]
