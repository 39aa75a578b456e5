"""A pod whose engine somebody else has started: spoken to over a Unix socket."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.status import AdapterState
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import FRAME_HEADER_BYTES, Command, Event, StepDone, Unmount, decode_command, encode_events
from graft_runtime.pod.engine_socket import EngineSocket

from tests.support.methods import save_method

ENGINE = Path(__file__).with_name("plain_engine.py")
PROMPT = [5, 6, 7, 8]


@pytest.fixture
def start_engine(tmp_path: Path) -> Iterator[Any]:
    """`start_engine(*arguments)`: the plain engine on a socket, as a process of its own; returns both."""
    started: list[subprocess.Popen[bytes]] = []

    def start(*arguments: str) -> tuple[subprocess.Popen[bytes], Path]:
        path = tmp_path / "engine.sock"
        command = [sys.executable, str(ENGINE), "listen", str(path), *arguments]
        started.append(subprocess.Popen(command, env=dict(os.environ)))
        return started[-1], path

    yield start
    for process in started:
        process.kill()
        process.wait()


def test_a_pod_converts_for_an_engine_on_a_socket_and_ends_with_it(
    make_pod: Any, tiny_base: Path, make_adapter: Any, start_engine: Any, tmp_path: Path
) -> None:
    """The engine takes plain LoRA only, and would fail where it is sent another adapter."""
    loha = save_method(tiny_base, tmp_path / "loha", "LoHaConfig", {"r": 2, "target_modules": ["q_proj"]}, seed=1)
    pod = make_pod()
    entries = [
        pod.entry("patterned", make_adapter("patterned", rank_pattern={"q_proj": 2}, use_rslora=True)),
        pod.entry("loha", loha),
        pod.entry("dora", make_adapter("dora", use_dora=True)),
        pod.entry("whole", make_adapter("whole", modules_to_save=["lm_head"])),
    ]
    pod.mount_set(pod.set_of(1, *entries))
    engine, path = start_engine("--normal-forms")
    pod.start("--engine-socket", str(path))
    pod.wait_ready()
    assert pod.status().base.runner == "plain"
    for name, method, rank in [("patterned", "LORA", 4), ("loha", "LOHA", 4)]:
        report = pod.report(name)
        assert (report.state, report.facts.method, report.facts.rank) == (AdapterState.MOUNTED, method, rank), report
        form = pod.directory / "cache" / "normal-forms" / report.digest.removeprefix("sha256:")
        config = json.loads((form / "adapter_config.json").read_bytes())
        assert (config["peft_type"], config["r"], config["lora_alpha"]) == ("LORA", rank, rank)
        assert pod.text(name, prompt=PROMPT) != pod.text("tiny", prompt=PROMPT)
    for name, why in [("dora", "does not compute Gain, Shift"), ("whole", "it keeps modules whole")]:
        fault = pod.report(name).fault
        assert fault.code is ErrorCode.UNSUPPORTED_METHOD
        assert why in fault.message
    assert len(list((pod.directory / "cache" / "normal-forms").iterdir())) == 2
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
