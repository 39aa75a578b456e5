"""The operator's side of the control port, against a real server on a loopback address."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from graft_operator.clients import runtime_client
from graft_operator.clients.runtime_client import (
    PodAddress,
    RuntimeClient,
    RuntimeRefusedError,
    RuntimeUnreachableError,
)
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.control import Accepted, Resolution, ResolveRequest
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.adapter_sets import set_of

POD = PodAddress("pod-uid", "127.0.0.1")
SET = set_of(3)
Handler = Callable[[web.Request], Awaitable[web.Response]]


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
        monkeypatch.setattr(runtime_client, "CONTROL_PORT", runner.addresses[0][1])

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
    monkeypatch.setattr(runtime_client, "CONTROL_PORT", 1)
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
