"""A second engine, which proves the port: plain LoRA alone, no weights, no sums, one tier, no model and no torch.

`plain_engine.py serve …` is a pod on it, `plain_engine.py listen PATH` the engine alone, for one pod. Each answer is
the prompt's tokens again, from the last to the first; under an adapter each is one higher. With `--impatient` the pod
waits three seconds where others wait half a minute.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.commands import serve
from graft_runtime.contract.facts import DeltaKind
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import GraftError
from graft_runtime.http import connections, reading, server
from graft_runtime.messages import (
    FRAME_HEADER_BYTES,
    BaseLoaded,
    Cancel,
    Capabilities,
    Command,
    EngineFault,
    Event,
    Generate,
    Generated,
    Mount,
    Mounted,
    MountFailed,
    Start,
    Unmount,
    Unmounted,
    decode_command,
    encode_events,
)

VOCABULARY = 320
PLAIN = Capabilities(frozenset({DeltaKind.LOW_RANK}), weights=False, adapters_per_request=1)


class PlainEngine:
    """See `EnginePort`."""

    def __init__(self, capabilities: Capabilities = PLAIN) -> None:
        self._capabilities = capabilities
        self._commands: asyncio.Queue[Command] = asyncio.Queue()
        self._running = asyncio.Event()
        self._max_rank = 0

    async def run(self, heard: Callable[[Event], None]) -> int:
        self._running.set()
        while True:
            if (event := self._answer(await self._commands.get())) is not None:
                heard(event)

    async def started(self) -> None:
        await self._running.wait()

    def send(self, command: Command) -> None:
        self._commands.put_nowait(command)

    def _answer(self, command: Command) -> Event | None:
        match command:
            case Start(limits=limits):
                self._max_rank = limits.max_rank
                context, can = limits.max_sequence_length, self._capabilities
                return BaseLoaded("plain", context, VOCABULARY, 1, "float32", Task.CAUSAL_LM, can)
            case Mount():
                return self._mount(command)
            case Unmount(digest=digest, keep=keep):
                return Unmounted(digest, "disk" if keep else None)
            case Generate(request=request, prompt=prompt, max_tokens=most, adapters=adapters):
                tokens = [token + len(adapters) for token in reversed(prompt)][:most]
                return Generated(request, tokens, "length")
            case Cancel():
                return None
            case _:
                raise AssertionError(f"this engine was sent {command}")

    def _mount(self, mount: Mount) -> Event:
        try:
            files = read_adapter_files(Path(mount.directory), name=mount.name, max_rank=self._max_rank)
        except GraftError as error:
            return MountFailed(mount.digest, EngineFault.of(error))
        if not files.facts.deltas <= PLAIN.deltas:
            raise AssertionError(f"the pod has sent {mount.name}, which this engine is not capable of")
        return Mounted(mount.digest, files.facts, files.bytes)


async def listen(path: Path, capabilities: Capabilities) -> None:
    """Take the commands of one pod at a Unix socket, until it goes."""
    ended = asyncio.Event()

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        engine = PlainEngine(capabilities)
        running = asyncio.create_task(engine.run(lambda event: writer.write(encode_events([event]))))
        with contextlib.suppress(asyncio.IncompleteReadError):
            while True:
                length = int.from_bytes(await reader.readexactly(FRAME_HEADER_BYTES), "big")
                engine.send(decode_command(await reader.readexactly(length)))
        running.cancel()
        writer.close()
        ended.set()

    async with await asyncio.start_unix_server(take, path):
        await ended.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    commands = parser.add_subparsers(dest="command")
    command = commands.add_parser("serve")
    serve.add_arguments(command)
    command.add_argument("--impatient", action="store_true")
    listening = commands.add_parser("listen")
    listening.add_argument("path", type=Path)
    listening.add_argument("--normal-forms", action="store_true")
    options = parser.parse_args()
    if options.command == "listen":
        can = msgspec.structs.replace(PLAIN, takes_normal_forms=options.normal_forms)
        asyncio.run(listen(options.path, can))
        sys.exit()
    if options.impatient:
        connections.HEAD_SECONDS = connections.READING_SECONDS = reading.BODY_SECONDS = 3.0
        server.KEEP_ALIVE_SECONDS = 3
    serve.run(options, PlainEngine)
