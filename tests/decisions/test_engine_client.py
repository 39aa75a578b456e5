"""What the pod's side of an engine does with requests, the engine being a list of commands."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from collections.abc import Callable

import pytest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    Cancel,
    Command,
    Encode,
    Encoded,
    EngineFault,
    Event,
    Generate,
    Generated,
    Sampling,
    encode_command,
)
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


class Fed:
    """An engine client with one request, and the events that come of it."""

    def __init__(self) -> None:
        self.client = EngineClient(ListedEngine(), lambda _: None)
        self.answer = self.client.submit(asked(1))
        self.ends = 0
        self.answer.ended = self._count

    def _count(self) -> None:
        self.ends += 1

    def hear(self, *tokens: int, finish: str | None = None) -> None:
        self.client._dispatch(Generated(self.answer.request, list(tokens), finish))


async def test_an_answer_tells_that_the_engine_is_done_whoever_still_reads() -> None:
    fed = Fed()
    fed.hear(1)
    assert (fed.ends, fed.client.pending) == (0, 1)
    fed.hear(2, finish="length")
    assert (fed.ends, fed.client.pending) == (1, 0)
    fed.answer.cancel()
    fed.answer.fail(GraftError(ErrorCode.SHUTTING_DOWN, "the pod ends"))
    assert fed.ends == 1
    assert await fed.answer.next() == ([1, 2], "length"), "a whole answer stays one"


async def test_an_answer_that_failed_keeps_nothing_of_who_read_it() -> None:
    fed = Fed()
    fed.answer.fail(GraftError(ErrorCode.SHUTTING_DOWN, "the pod ends"))

    async def read() -> weakref.ref[Fed]:
        body = Fed()
        with contextlib.suppress(GraftError):
            await fed.answer.next()
            raise AssertionError("it has failed")
        return weakref.ref(body)

    reader = await read()
    gc.collect()
    assert reader() is None


async def test_a_cancelled_answer_is_done_at_once() -> None:
    fed = Fed()
    fed.answer.cancel()
    fed.hear(1, finish="stop")
    assert fed.ends == 1


async def test_a_text_that_takes_one_pass_is_waited_for_and_taken_back_when_nobody_waits() -> None:
    engine = ListedEngine()
    client = EngineClient(engine, lambda _: None)

    async def passed(event: Event | None) -> Encoded:
        waiting = asyncio.ensure_future(client.encode(lambda name: Encode(name, [1])))
        await asyncio.sleep(0)
        assert client.pending == 1
        if event is None:
            waiting.cancel()
        else:
            client._dispatch(event)
        return await waiting

    told = Encoded("1", (2,), [0.5, 1.5])
    assert await passed(told) == told
    fault = EngineFault.of(GraftError(ErrorCode.NO_CAPACITY, "no room"))
    with pytest.raises(GraftError, match="no room"):
        await passed(Encoded("2", (), [], fault))
    with pytest.raises(asyncio.CancelledError):
        await passed(None)
    assert (client.pending, engine.sent[-1]) == (0, Cancel("3"))
    client._dispatch(Encoded("3", (), []))  # it was on its way


async def test_an_engine_that_is_refused_fails_what_runs_and_takes_nothing_more() -> None:
    fed = Fed()
    fault = GraftError(ErrorCode.NOT_READY, "the weights changed")
    one_pass = asyncio.create_task(fed.client.encode(lambda name: Encode(name, [1])))
    await asyncio.sleep(0)
    assert fed.client.pending == 2
    fed.client.refuse(fault)
    for waiting in (fed.answer.next(), one_pass):
        with pytest.raises(GraftError, match="the weights changed"):
            await waiting
    assert (fed.ends, fed.client.pending) == (1, 0)
    with pytest.raises(GraftError, match="the weights changed"):
        fed.client.submit(asked(1))
    with pytest.raises(GraftError, match="the weights changed"):
        await fed.client.encode(lambda name: Encode(name, [1]))
    assert fed.client.pending == 0
