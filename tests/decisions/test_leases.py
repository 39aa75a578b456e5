"""Who leads: when a Lease may be taken, until when its holder may write, and what happens when it can't be renewed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any, cast

import aiohttp
import pytest
from aiohttp import web
from graft_operator.clients.cluster import Cluster, ConflictError, UnavailableError
from graft_operator.clients.elector import Elector, LeaseLostError
from graft_operator.clients.fence import Fence, NotLeadingError
from graft_operator.decisions.leases import LeaseView, Sighting, read_lease
from graft_operator.keys import ObjectKey
from graft_operator.objects import build_lease
from graft_operator.settings import Settings
from kubernetes.aio.client import Configuration

LEASE = LeaseView("uid", "1", "other", 15.0, 3)
SETTINGS = Settings("graft-system", "runtime", lease="lease", lease_seconds=15)


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


class Leases:
    """Stands in for the API server: one Lease, with versions and preconditions, and the Events about it."""

    def __init__(self) -> None:
        self.body: dict[str, Any] | None = None
        self.version = 0
        self.down = False
        self.events: list[str] = []

    @property
    def lease(self) -> LeaseView | None:
        return read_lease(self.body)

    async def get(self, *_: str) -> dict[str, Any] | None:
        await asyncio.sleep(0)
        if self.down:
            raise UnavailableError("no answer")
        return self.body

    async def apply(self, body: dict[str, Any], *, uid: str | None, resource_version: str | None) -> dict[str, Any]:
        await asyncio.sleep(0)
        if self.down:
            raise UnavailableError("no answer")
        known = self.lease
        if (uid, resource_version) != ((None, None) if known is None else (known.uid, known.resource_version)):
            raise ConflictError("the object has been modified", 409)
        self.version += 1
        self.body = {**body, "metadata": {**body["metadata"], "uid": "uid", "resourceVersion": str(self.version)}}
        return self.body

    async def create(self, body: dict[str, Any]) -> None:
        self.events.append(body["message"])


def elector(leases: Leases, identity: str, clock: Clock, fence: Fence | None = None) -> Elector:
    return Elector(cast(Cluster, leases), fence or Fence(clock), SETTINGS, identity, clock=clock, unix_clock=clock)


async def passes(clock: Clock, seconds: float) -> None:
    """Let seconds of the clock pass, and everybody do what is due."""
    for _ in range(round(seconds * 4)):
        clock.now += 0.25
        for _ in range(30):
            await asyncio.sleep(0)


@pytest.fixture(autouse=True)
def sleepless(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> None:
    """Let the elector's sleeps end by the test's clock."""
    at_once = asyncio.sleep

    async def sleep(seconds: float) -> None:
        until = clock.now + seconds
        await at_once(0)
        while clock.now < until:
            await at_once(0)

    monkeypatch.setattr("graft_operator.clients.elector.asyncio", _WithSleep(sleep))


class _WithSleep:
    def __init__(self, sleep: Any) -> None:
        self.sleep = sleep

    def __getattr__(self, name: str) -> Any:
        return getattr(asyncio, name)


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.mark.parametrize(
    ("lease", "unchanged", "may"),
    [
        (None, 0.0, True),
        (replace(LEASE, holder=None), 0.0, True),
        (replace(LEASE, holder="me"), 0.0, True),
        (LEASE, 14.9, False),
        (LEASE, 15.0, True),
        (replace(LEASE, seconds=60.0), 15.0, False),
    ],
    ids=["none", "given back", "own", "renewed", "silent", "as its holder says"],
)
def test_when_a_lease_may_be_taken(lease: LeaseView | None, unchanged: float, may: bool) -> None:
    assert Sighting(lease, 50.0).may_take("me", 50.0 + unchanged) is may


def test_a_lease_that_was_renewed_is_waited_for_anew() -> None:
    seen = Sighting(LEASE, 50.0).again(replace(LEASE, resource_version="2"), 60.0)
    assert not seen.may_take("me", 74.0)
    assert seen.again(replace(LEASE, resource_version="2"), 74.0).may_take("me", 75.0)


def test_what_is_built_is_what_is_read() -> None:
    body = build_lease("n", "l", holder="me", seconds=15, acquired=1.5, renewed=2.5, transitions=4)
    assert body["spec"]["renewTime"] == "1970-01-01T00:00:02.500000Z"
    body["metadata"] |= {"uid": "u", "resourceVersion": "9"}
    assert read_lease(body) == LeaseView("u", "9", "me", 15.0, 4)


async def test_one_leads_and_the_other_takes_over_at_once_when_the_lease_is_given_back(clock: Clock) -> None:
    leases, fence = Leases(), Fence(clock)
    first, second = elector(leases, "first", clock, fence), elector(leases, "second", clock)
    await first.lead()
    assert leases.events == ["first leads"]
    waiting = asyncio.create_task(second.lead())
    keeping = asyncio.create_task(first.keep())
    await passes(clock, 60)
    assert not waiting.done()
    assert second.waits
    assert fence.seconds_left > 0
    keeping.cancel()
    await first.release()
    assert fence.seconds_left < 0
    await passes(clock, 1)
    assert waiting.done()
    assert leases.lease is not None
    assert (leases.lease.holder, leases.lease.transitions) == ("second", 1)
    assert not second.waits


async def test_who_can_t_renew_stops_writing_before_another_one_may_lead(clock: Clock) -> None:
    leases, fence = Leases(), Fence(clock)
    first, second = elector(leases, "first", clock, fence), elector(leases, "second", clock)
    await first.lead()
    keeping = asyncio.create_task(first.keep())
    waiting = asyncio.create_task(second.lead())
    await passes(clock, 20)
    leases.down = True
    await passes(clock, 7)
    assert fence.seconds_left > 0, "a short outage costs nothing"
    await passes(clock, 3.25)
    assert fence.seconds_left <= 0
    with pytest.raises(LeaseLostError, match="could not be renewed in time"):
        await keeping
    leases.down = False
    await passes(clock, 1.5)
    assert not waiting.done(), "what the first has sent may be on its way"
    await passes(clock, 5)
    assert waiting.done()


async def test_who_was_stopped_for_too_long_neither_writes_nor_renews(clock: Clock) -> None:
    leases, fence = Leases(), Fence(clock)
    first = elector(leases, "first", clock, fence)
    await first.lead()
    keeping = asyncio.create_task(first.keep())
    await passes(clock, 5)
    version = leases.version
    clock.now += 11
    assert fence.seconds_left <= 0
    with pytest.raises(LeaseLostError):
        await keeping
    assert leases.version == version, "another one may hold it by now"


async def test_a_lease_that_a_person_deletes_or_annotates_stays_with_its_holder(clock: Clock) -> None:
    leases, fence = Leases(), Fence(clock)
    first = elector(leases, "first", clock, fence)
    await first.lead()
    keeping = asyncio.create_task(first.keep())
    leases.body = None
    await passes(clock, 5)
    assert leases.lease is not None
    assert leases.lease.holder == "first"
    leases.body = {**(leases.body or {}), "metadata": {"uid": "uid", "resourceVersion": "annotated"}}
    await passes(clock, 5)
    assert leases.lease.resource_version.isdecimal()
    assert fence.seconds_left > 0
    keeping.cancel()


async def test_a_lease_that_another_one_has_taken_is_lost(clock: Clock) -> None:
    leases, fence = Leases(), Fence(clock)
    first, second = elector(leases, "first", clock, fence), elector(leases, "second", clock)
    await first.lead()
    leases.body = None
    await second.lead()
    keeping = asyncio.create_task(first.keep())
    await passes(clock, 5)
    with pytest.raises(LeaseLostError, match="is held by second"):
        await keeping
    assert fence.seconds_left < 0


async def test_who_starts_again_under_its_name_leads_at_once(clock: Clock) -> None:
    leases = Leases()
    await elector(leases, "pod-0", clock).lead()
    before = leases.lease
    await elector(leases, "pod-0", clock).lead()
    assert before is not None
    assert leases.lease is not None
    assert leases.lease.transitions == before.transitions


@pytest.fixture
async def asked() -> AsyncIterator[tuple[str, list[str]]]:
    """Where a server is that answers to all methods, and what it was asked."""
    methods: list[str] = []

    async def answer(request: web.Request) -> web.Response:
        methods.append(request.method)
        return web.json_response({})

    application = web.Application()
    application.router.add_route("*", "/{path:.*}", answer)
    runner = web.AppRunner(application)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    yield f"http://127.0.0.1:{runner.addresses[0][1]}", methods
    await runner.cleanup()


async def test_a_closed_fence_lets_questions_through_and_no_change(asked: tuple[str, list[str]], clock: Clock) -> None:
    url, methods = asked
    fence = Fence(clock)
    async with aiohttp.ClientSession(trace_configs=[fence.trace()]) as session:
        for method in ("PATCH", "POST", "PUT", "DELETE"):  # by a new connection
            with pytest.raises(NotLeadingError):
                await session.request(method, url)
        async with session.get(url):
            assert methods == ["GET"]
        fence.open_until(clock.now + 10)
        async with session.patch(url):
            assert methods == ["GET", "PATCH"]
        clock.now += 10
        with pytest.raises(NotLeadingError):  # by the one that is there
            await session.patch(url)
    assert methods == ["GET", "PATCH"]


async def test_a_fence_that_closes_while_a_connection_is_made_holds_the_request_back(
    asked: tuple[str, list[str]], clock: Clock
) -> None:
    url, methods = asked
    fence = Fence(clock)
    fence.open_until(clock.now + 10)
    slow = aiohttp.TraceConfig()

    async def connecting(*_: Any) -> None:
        clock.now += 20

    slow.on_connection_create_start.append(connecting)
    async with aiohttp.ClientSession(trace_configs=[slow, fence.trace()]) as session:
        with pytest.raises(NotLeadingError):
            await session.patch(url)
    assert methods == []


async def test_the_operator_changes_nothing_while_it_does_not_lead(asked: tuple[str, list[str]], clock: Clock) -> None:
    url, methods = asked
    fence = Fence(clock)
    cluster = Cluster(Configuration(host=url), fence)
    about = ObjectKey("ConfigMap", "team", "x")
    body = {"kind": about.kind, "metadata": {"namespace": about.namespace, "name": about.name}}
    with pytest.raises(UnavailableError, match="does not lead"):
        await cluster.apply(body, uid=None)
    assert await cluster.get(*about) == {}
    assert methods == ["GET"]
    await cluster.close()
