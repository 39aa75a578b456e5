"""What the pod's side of an engine does with requests, the engine being a list of commands."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from graft_runtime.messages import Cancel, Command, Event, Generate, Sampling, encode_command
from graft_runtime.pod.engine_client import EngineClient


class ListedEngine:
    """Encodes as the engine process' port does, and keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Command] = []

    async def run(self, heard: Callable[[Event], None]) -> int:
        return 0

    async def started(self) -> None:
        return None

    def send(self, command: Command) -> None:
        encode_command(command)
        self.sent.append(command)


def asked(top_k: int) -> Callable[[str], Generate]:
    return lambda name: Generate(name, [1], 1, sampling=Sampling(top_k=top_k))


async def test_a_request_that_cannot_be_encoded_is_not_waited_for() -> None:
    engine = ListedEngine()
    client = EngineClient(engine, lambda _: None)
    with pytest.raises(OverflowError):
        client.submit(asked(2**64))
    assert (client.pending, engine.sent) == (0, [])
    answer = client.submit(asked(5))
    assert client.pending == 1
    answer.cancel()
    assert (client.pending, engine.sent[-1]) == (0, Cancel(answer.request))
