"""The real child process over a socket pair: it answers, survives bad adapters, and goes when its parent goes."""

from __future__ import annotations

import json
import os
import queue
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace, UnionType
from typing import Any

import pytest
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine import process
from graft_runtime.engine.room import ENGINE_MEBIBYTES
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import (
    FRAME_HEADER_BYTES,
    BaseFailed,
    BaseLoaded,
    Generate,
    Generated,
    Mount,
    Mounted,
    MountFailed,
    Occupancy,
    Sampling,
    ServedAdapter,
    Start,
    decode_events,
    encode_command,
)

DEADLINE_SECONDS = 60.0
LIMITS = EngineConfig(max_sequences=8, max_sequence_length=128, max_mounted_adapters=4, max_rank=16)


class Child:
    """The engine process and our end of its socket."""

    def __init__(self, *, keep_log: bool = False, **environment: str) -> None:
        self.connection, theirs = socket.socketpair()
        self.connection.settimeout(DEADLINE_SECONDS)
        with theirs:
            command = [sys.executable, "-m", "graft_runtime.engine", "--socket-fd", str(theirs.fileno())]
            environment = os.environ | {"OMP_NUM_THREADS": "1"} | environment
            self.process = subprocess.Popen(
                command, pass_fds=[theirs.fileno()], env=environment, stderr=subprocess.PIPE if keep_log else None
            )
        self._stream = self.connection.makefile("rb")
        self._events: list[Any] = []

    def send(self, *commands: Any) -> None:
        self.connection.sendall(b"".join(encode_command(command) for command in commands))

    def next(self, kind: type | UnionType) -> Any:
        """The next event of this kind; others before it are dropped."""
        while True:
            while self._events:
                event = self._events.pop(0)
                if isinstance(event, kind):
                    return event
            length = int.from_bytes(self._stream.read(FRAME_HEADER_BYTES), "big")
            self._events = decode_events(self._stream.read(length))

    def answer(self, request: str) -> tuple[list[int], Generated]:
        tokens: list[int] = []
        while True:
            event = self.next(Generated)
            if event.request == request:
                tokens += event.tokens
                if event.finish:
                    return tokens, event

    def close(self) -> int:
        """Hangs up; the status that the process ends with."""
        self._stream.close()
        self.connection.close()
        return self.process.wait(DEADLINE_SECONDS)


@pytest.fixture
def child() -> Iterator[Child]:
    child = Child()
    yield child
    child.process.kill()
    child.close()


def test_the_process_serves_over_its_socket(child: Child, tiny_base: Path, make_adapter: Any) -> None:
    good, bad = make_adapter("good"), make_adapter("bad", r=32)
    child.send(
        Start(str(tiny_base), "tiny", "float32", LIMITS),
        Mount("sha256:good", str(good), "good"),
        Mount("sha256:bad", str(bad), "bad"),
    )
    loaded = child.next(BaseLoaded)
    assert (loaded.runner, loaded.context_length, loaded.vocabulary_size, loaded.dtype) == (
        "decoder",
        128,
        320,
        "float32",
    )
    assert loaded.parameter_count > 0
    told = [child.next(Mounted | MountFailed) for _ in range(2)]  # the shorter job comes first
    mounted, failed = sorted(told, key=lambda event: event.digest, reverse=True)
    assert (mounted.digest, mounted.facts.rank) == ("sha256:good", 4)
    assert (failed.digest, failed.fault.code) == ("sha256:bad", ErrorCode.RANK_TOO_HIGH)

    greedy = Sampling(temperature=0)
    child.send(Generate("base", [256, 1, 2], 6, (), greedy))
    base, last = child.answer("base")
    assert (len(base), last.finish) == (6, "length")
    assert child.next(Occupancy) == Occupancy()
    child.send(Generate("adapted", [256, 1, 2], 6, (ServedAdapter("sha256:good", 1.0),), greedy))
    adapted, _ = child.answer("adapted")
    assert adapted != base

    assert child.close() == 0


def test_without_memory_for_torch_the_base_is_refused_before_it_is_imported() -> None:
    child = Child(GRAFT_MEMORY_LIMIT=str(300 << 20))
    try:
        child.send(Start("/nowhere", "tiny", "float32", LIMITS), Mount("sha256:good", "/nowhere", "good"))
        fault = child.next(BaseFailed).fault
        assert "torch" not in Path(f"/proc/{child.process.pid}/maps").read_text()
    finally:
        status = child.close()
    assert (fault.code, status) == (ErrorCode.NO_CAPACITY, 0)
    assert re.fullmatch(r"the engine needs \d+ MiB before it loads a model; \d+ MiB of memory are free", fault.what)


def test_what_the_process_needs_before_it_loads_a_model_is_what_it_is_refused_below() -> None:
    child = Child()
    try:
        child.send(Start("/nowhere", "tiny", "float32", LIMITS))
        child.next(BaseFailed)
        status = Path(f"/proc/{child.process.pid}/status").read_text()
    finally:
        child.close()
    (kibibytes,) = re.findall(r"^RssAnon:\s+(\d+) kB", status, re.MULTILINE)
    assert int(kibibytes) >> 10 < ENGINE_MEBIBYTES


def test_a_message_that_makes_no_sense_ends_the_process_with_a_line_in_the_log() -> None:
    child = Child(keep_log=True)
    try:
        child.connection.sendall((3).to_bytes(FRAME_HEADER_BYTES, "big") + b"\xc1\xc1\xc1")
        _, log = child.process.communicate(timeout=DEADLINE_SECONDS)
    finally:
        child.process.kill()
        status = child.close()
    assert status == 2
    last = json.loads(log.splitlines()[-1])
    assert (last["level"], last["logger"]) == ("critical", "graft_runtime.engine.process")
    assert "can't be read" in last["message"]


def test_the_process_dies_with_its_parent() -> None:
    """Even while it still holds an end of the socket pair, so that no end of file tells it."""
    parent = (
        "import socket, subprocess, sys\n"
        "from graft_runtime.contract.config import EngineConfig\n"
        "from graft_runtime.messages import Start, encode_command\n"
        "ours, theirs = socket.socketpair()\n"
        "command = [sys.executable, '-m', 'graft_runtime.engine', '--socket-fd', str(theirs.fileno())]\n"
        "inherited = [ours.fileno(), theirs.fileno(), int(sys.argv[1])]\n"
        "child = subprocess.Popen(command, pass_fds=inherited)\n"
        "ours.sendall(encode_command(Start('/nowhere', 'none', 'auto', EngineConfig())))\n"
        "print(len(ours.recv(4)), flush=True)\n"
        "sys.stdin.read()\n"
    )
    lifeline, death = os.pipe()  # the child holds `death`: the end of file comes when it is gone
    started = subprocess.Popen(
        [sys.executable, "-c", parent, str(death)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, pass_fds=[death]
    )
    os.close(death)
    with started, os.fdopen(lifeline, "rb") as gone:
        assert started.stdout is not None
        assert started.stdout.readline() == b"4\n", "the child has answered"
        started.kill()
        assert gone.read() == b""


class EndedError(Exception):
    """Ends the loop."""


def test_an_engine_gives_back_what_is_free_once_while_nobody_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []

    class Inbox(queue.SimpleQueue[str]):
        def get(self, block: bool = True, timeout: float | None = None) -> str:
            if timeout is not None and told.count("calm") == 0:
                told.append("calm")
                raise queue.Empty
            return super().get(block=False)

    def handle(message: str) -> None:
        told.append(message)
        if message == "last":
            raise EndedError

    engine: Any = SimpleNamespace(busy=False, handle=handle, step=list)
    inbox = Inbox()
    for message in ("first", "last"):
        inbox.put(message)
    monkeypatch.setattr(process, "give_back_what_is_free", lambda: told.append("given back"))
    with pytest.raises(EndedError):
        process.run(engine, inbox, told.append)  # type: ignore[arg-type]
    assert told == ["calm", "given back", "first", "last"]
