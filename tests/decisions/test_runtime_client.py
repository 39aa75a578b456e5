"""The operator's side of the control port, against a real server on a loopback address."""

from __future__ import annotations

import asyncio
import gzip
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest
from aiohttp import web
from graft_operator.clients import runtime_client
from graft_operator.clients.runtime_client import (
    POLLS_A_SECOND,
    POLLS_AT_ONCE,
    PodAddress,
    RuntimeClient,
    RuntimeRefusedError,
    RuntimeUnreachableError,
)
from graft_operator.clients.shares import Pace
from graft_runtime.contract import ports
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.control import Accepted, Resolution, ResolveRequest
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.adapter_sets import set_of

POD = PodAddress("pod-uid", "127.0.0.1")
SET = set_of(3)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


@pytest.fixture
async def client() -> AsyncIterator[RuntimeClient]:
    found = RuntimeClient(lambda uid, now: f"token-for-{uid}")
    yield found
    await found.close()


@pytest.fixture
async def serve(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Callable[[Handler], Awaitable[None]]]:
    runners: list[web.AppRunner] = []

    async def start(handler: Handler) -> None:
        application = web.Application()
        application.router.add_route("*", "/{path}", handler)
        runner = web.AppRunner(application, shutdown_timeout=0.1)
        runners.append(runner)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        monkeypatch.setattr(ports, "CONTROL_PORT", runner.addresses[0][1])

    yield start
    for runner in runners:
        await runner.cleanup()


Serve = Callable[[Handler], Awaitable[None]]


async def test_a_push_carries_the_set_and_a_token(client: RuntimeClient, serve: Serve) -> None:
    seen: list[tuple[str, str | None, AdapterSet]] = []

    async def take(request: web.Request) -> web.Response:
        body = AdapterSet.read(await request.read())
        seen.append((request.method + request.path, request.headers.get("Authorization"), body))
        accepted = Accepted(boot_id="boot", adapter_set=AdapterSetVersion(generation=3, hash=body.content_hash()))
        return web.Response(body=accepted.canonical_json())

    await serve(take)
    accepted = await client.push(POD, SET)
    assert seen == [("PUT/adapter-set", "Bearer token-for-pod-uid", SET)]
    assert accepted.adapter_set.hash == SET.content_hash()


async def test_no_news_is_none(client: RuntimeClient, serve: Serve) -> None:
    async def nothing(request: web.Request) -> web.Response:
        assert dict(request.query) == {"boot": "b", "since": "4", "wait": "25"}
        return web.Response(status=204)

    await serve(nothing)
    assert await client.status(POD, "b", 4) is None


async def test_a_refusal_has_the_text_of_the_pod(client: RuntimeClient, serve: Serve) -> None:
    async def refuse(_: web.Request) -> web.Response:
        return web.Response(status=409, body=Fault(code=ErrorCode.STALE_GENERATION, message="older").canonical_json())

    await serve(refuse)
    with pytest.raises(RuntimeRefusedError, match="older") as caught:
        await client.push(POD, SET)
    assert caught.value.status == 409


async def test_an_answer_that_is_none_counts_as_no_answer(client: RuntimeClient, serve: Serve) -> None:
    async def babble(_: web.Request) -> web.Response:
        return web.Response(text="<html>")

    await serve(babble)
    with pytest.raises(RuntimeUnreachableError, match="no Accepted"):
        await client.push(POD, SET)


async def test_a_redirect_is_not_followed(client: RuntimeClient, serve: Serve) -> None:
    async def elsewhere(_: web.Request) -> web.Response:
        return web.Response(status=307, headers={"Location": "http://127.0.0.1:1/"})

    await serve(elsewhere)
    with pytest.raises(RuntimeRefusedError) as caught:
        await client.push(POD, SET)
    assert caught.value.status == 307


async def test_a_pod_that_hangs_is_given_up(
    client: RuntimeClient, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runtime_client, "PUSH_SECONDS", 0.05)

    async def hang(_: web.Request) -> web.Response:
        await asyncio.Event().wait()
        return web.Response()

    await serve(hang)
    with pytest.raises(RuntimeUnreachableError) as caught:
        await client.push(POD, SET)
    assert not caught.value.refused


async def test_nobody_listening_is_told_apart(client: RuntimeClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ports, "CONTROL_PORT", 1)
    with pytest.raises(RuntimeUnreachableError) as caught:
        await client.push(POD, SET)
    assert caught.value.refused


async def test_a_resolution_comes_back(client: RuntimeClient, serve: Serve) -> None:
    async def resolve(request: web.Request) -> web.Response:
        asked = ResolveRequest.read(await request.read())
        fault = Fault(code=ErrorCode.NOT_FOUND, message=asked.source.uri)
        return web.Response(body=Resolution(fault=fault).canonical_json())

    await serve(resolve)
    found = await client.resolve(POD, ResolveRequest(source=Source(uri="pvc://shelf/a")))
    assert found.fault is not None
    assert found.fault.message == "pvc://shelf/a"


def test_addresses_of_version_6_are_bracketed() -> None:
    assert PodAddress("uid", "fd00::1").url == "http://[fd00::1]:8001"


@pytest.mark.parametrize("announced", [True, False])
async def test_an_answer_without_end_is_broken_off(
    client: RuntimeClient, serve: Serve, monkeypatch: pytest.MonkeyPatch, announced: bool
) -> None:
    monkeypatch.setattr(runtime_client, "ANSWER_BYTES", 100_000)
    sent = 0

    async def flood(request: web.Request) -> web.StreamResponse:
        nonlocal sent
        response = web.StreamResponse(headers={"Content-Length": str(2**40)} if announced else {})
        await response.prepare(request)
        while True:
            await response.write(b"[" * 10_000)
            sent += 10_000

    await serve(flood)
    with pytest.raises(RuntimeUnreachableError, match="larger than 100000 bytes"):
        await client.status(POD, "", 0)
    assert sent < 20 * 2**20


async def test_pods_of_one_namespace_share_the_room_for_their_answers(
    client: RuntimeClient, serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    both, done = asyncio.Barrier(2), asyncio.Event()
    client._reading.most = 150_000

    async def slow(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(b"x" * 100_000)
        await both.wait()
        await done.wait()
        return response

    await serve(slow)
    asked = [asyncio.create_task(client.status(POD, "", 0)) for _ in range(2)]
    await asyncio.wait(asked, return_when=asyncio.FIRST_COMPLETED)
    refused = next(task for task in asked if task.done())
    with pytest.raises(RuntimeUnreachableError, match="too much is being read at once"):
        refused.result()
    done.set()
    await asyncio.gather(*asked, return_exceptions=True)
    assert client._reading.take(POD.namespace, 150_000)


async def test_a_packed_answer_is_not_unpacked(client: RuntimeClient, serve: Serve) -> None:
    async def bomb(_: web.Request) -> web.Response:
        return web.Response(body=gzip.compress(b"[" * 2**24), headers={"Content-Encoding": "gzip"})

    await serve(bomb)
    with pytest.raises(RuntimeUnreachableError, match="no RuntimeStatus"):
        await client.status(POD, "", 0)


@pytest.fixture
def slept(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Nothing sleeps any more; the seconds that it would have slept."""
    seconds_slept: list[float] = []
    real_sleep = asyncio.sleep

    async def sleep(seconds: float) -> None:
        seconds_slept.append(seconds)
        await real_sleep(0)

    monkeypatch.setattr(asyncio, "sleep", sleep)
    return seconds_slept


async def test_a_pod_that_always_has_news_is_asked_a_few_times_a_second(
    client: RuntimeClient, serve: Serve, slept: list[float]
) -> None:
    async def news(_: web.Request) -> web.Response:
        return web.Response(status=204)

    await serve(news)
    for _ in range(POLLS_AT_ONCE + 8):
        await client.status(POD, "", 0)
    assert slept[:POLLS_AT_ONCE] == [0] * POLLS_AT_ONCE
    assert slept[-1] > 0.5 * 8 / POLLS_A_SECOND
    await client.status(PodAddress("another", "127.0.0.1"), "", 0)
    assert slept[-1] == 0


async def test_pods_that_always_have_news_share_the_polls_of_their_namespace(
    client: RuntimeClient, serve: Serve, slept: list[float]
) -> None:
    client._namespace_polls = Pace(burst=5, per_second=1)
    await serve(_says(""))
    for number in range(8):
        with pytest.raises(RuntimeUnreachableError):
            await client.status(PodAddress(f"pod-{number}", "127.0.0.1", "bad"), "", 0)
    assert slept[4] == 0
    assert slept[-1] > 2
    with pytest.raises(RuntimeUnreachableError):
        await client.status(PodAddress("another", "127.0.0.1", "good"), "", 0)
    assert slept[-1] == 0


@pytest.mark.parametrize(
    "lie",
    [
        {"bootId": "x" * 1000},
        {"base": {"name": "x" * 1000, "state": "Serving"}},
        {"sequence": 2**70},
        {"adapters": [{"name": "x" * 1000, "state": "Mounted"}]},
        {"adapters": [{"name": "a", "state": "Mounted", "revision": "x" * 1000}]},
        {
            "adapters": [
                {
                    "name": "a",
                    "state": "Mounted",
                    "facts": {"method": "LORA", "rank": 10**9, "moduleCount": 1, "deltas": []},
                }
            ]
        },
    ],
)
async def test_what_no_runtime_says_counts_as_no_answer(
    client: RuntimeClient, serve: Serve, lie: dict[str, Any]
) -> None:
    told = {"bootId": "b", "sequence": 1, "poolUid": "p", "configHash": "c", "ready": True}
    told |= {"base": {"name": "base", "state": "Serving"}, "adapterSet": {"generation": 1}}
    await serve(_says(json.dumps(told)))
    assert await client.status(POD, "", 0) is not None

    answer = _says(json.dumps(told | lie))
    await serve(answer)
    with pytest.raises(RuntimeUnreachableError, match="no RuntimeStatus"):
        await client.status(POD, "", 0)


def _says(text: str) -> Handler:
    async def answer(_: web.Request) -> web.Response:
        return web.Response(text=text)

    return answer
