"""A pod whose engine somebody else has started: spoken to over a Unix socket."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.status import AdapterState
from graft_runtime.messages import FRAME_HEADER_BYTES, Command, Event, StepDone, Unmount, decode_command, encode_events
from graft_runtime.pod.engine_socket import EngineSocket

ENGINE = Path(__file__).with_name("plain_engine.py")
PROMPT = [5, 6, 7, 8]


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Any]:
    """`start_engine()`: the plain engine on a socket, as a process of its own; returns both."""
    started: list[subprocess.Popen[bytes]] = []

    def start() -> tuple[subprocess.Popen[bytes], Path]:
        path = tmp_path / "engine.sock"
        started.append(subprocess.Popen([sys.executable, str(ENGINE), "listen", str(path)], env=dict(os.environ)))
        return started[-1], path

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_pod_serves_with_an_engine_on_a_socket_and_ends_with_it(
    make_pod: Any, make_adapter: Any, start_engine: Any
) -> None:
    pod = make_pod()
    pod.mount_set(pod.set_of(1, pod.entry("plain", make_adapter("plain"))))
    engine, path = start_engine()
    pod.start("--engine-socket", str(path))
    pod.wait_ready()
    assert pod.status().base.runner == "plain"
    assert pod.report("plain").state is AdapterState.MOUNTED
    assert pod.text("plain", prompt=PROMPT) != pod.text("tiny", prompt=PROMPT)
    engine.kill()
    assert pod.process.wait(30) not in {0, None}
    assert "the engine process ended; this process ends as well" in pod.log


@asynccontextmanager
async def listening(path: Path, *answers: list[Event]) -> AsyncIterator[list[Command]]:
    """Take one command at a socket, answer with these batches of events, and close it."""
    taken: list[Command] = []

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        length = int.from_bytes(await reader.readexactly(FRAME_HEADER_BYTES), "big")
        taken.append(decode_command(await reader.readexactly(length)))
        for events in answers:
            writer.write(encode_events(events))
        writer.close()

    async with await asyncio.start_unix_server(take, path):
        yield taken


async def test_it_waits_for_the_engine_and_hears_events_in_order_until_the_end(tmp_path: Path) -> None:
    engine, path, heard = EngineSocket(tmp_path / "engine.sock"), tmp_path / "engine.sock", list[Event]()
    running = asyncio.create_task(engine.run(heard.append))
    await asyncio.sleep(0)
    async with listening(path, [StepDone(1.0), StepDone(2.0)], [StepDone(3.0)]) as taken:
        await engine.started()
        engine.send(Unmount("sha256:1"))
        await running
    assert taken == [Unmount("sha256:1")]
    assert heard == [StepDone(1.0), StepDone(2.0), StepDone(3.0)]
    engine.send(Unmount("sha256:2"))


async def test_what_is_no_event_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "engine.sock"

    async def take(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"\xff\xff\xff\xff")
        writer.close()

    async with await asyncio.start_unix_server(take, path):
        with pytest.raises(ValueError, match="4294967295 bytes, over the limit"):
            await EngineSocket(path).run(lambda event: None)
