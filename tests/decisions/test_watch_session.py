"""What kopf is left with of lists and watches: how far they are, whatever is in them."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from graft_operator.clients.cluster import UnavailableError
from graft_operator.clients.watch_session import WatchSession
from graft_operator.kinds import Kind

from tests.support.bodies import pod_body

PODS = "/api/v1/namespaces/team/pods"


class Feed:
    """Notes what it is given."""

    def __init__(self) -> None:
        self.taken: list[tuple[str, str, str]] = []
        self.error: Exception | None = None

    async def list(self, kind: Kind, namespace: str | None) -> str:
        if self.error is not None:
            raise self.error
        return f"version-of-{kind.plural}-in-{namespace}"

    def take(self, kind: Kind, event: str, body: Mapping[str, Any]) -> None:
        self.taken.append((kind.name, event, body["metadata"]["name"]))


@pytest.fixture
def feed() -> Feed:
    return Feed()


Ask = Callable[..., Any]


@pytest.fixture
async def ask(feed: Feed) -> AsyncIterator[Ask]:
    """Ask an API server that says `lines`, as kopf does."""
    runners: list[web.AppRunner] = []
    session = WatchSession(feed, ("team",), {})

    async def asked(path: str, content: bytes, status: int = 200) -> Any:
        async def answer(_: web.Request) -> web.Response:
            return web.Response(body=content, status=status)

        application = web.Application()
        application.router.add_get("/{path:.*}", answer)
        runner = web.AppRunner(application)
        runners.append(runner)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return await session.request("get", f"http://127.0.0.1:{runner.addresses[0][1]}{path}", json=None)

    yield asked
    await session.close()
    assert session.closed
    for runner in runners:
        await runner.cleanup()


def line(event: str, body: dict[str, Any]) -> bytes:
    return json.dumps({"type": event, "object": body}).encode() + b"\n"


async def watched(response: Any) -> list[Any]:
    async with response:
        return [json.loads(line) async for line in response.content.iter_chunked(1024)]


def bookmark(version: str) -> dict[str, Any]:
    return {"type": "BOOKMARK", "object": {"metadata": {"resourceVersion": version}}}


async def test_a_list_is_made_by_the_feed_and_kopf_gets_its_version(feed: Feed, ask: Ask) -> None:
    async with await ask(f"{PODS}?labelSelector=x", b"no JSON") as response:
        assert response.status == 200
        assert await response.json() == {"items": [], "metadata": {"resourceVersion": "version-of-pods-in-team"}}


async def test_a_list_that_fails_is_tried_again_by_kopf(feed: Feed, ask: Ask) -> None:
    feed.error = UnavailableError("later")
    with pytest.raises(aiohttp.ClientConnectionError, match="later"):
        await ask(PODS, b"")


async def test_events_go_to_the_feed_and_kopf_gets_bookmarks(feed: Feed, ask: Ask) -> None:
    content = (
        line("ADDED", pod_body("a", 5))
        + line("BOOKMARK", {"metadata": {"resourceVersion": "6"}})
        + line("DELETED", pod_body("a", 7))
    )
    assert await watched(await ask(f"{PODS}?watch=true", content)) == [bookmark("5"), bookmark("6"), bookmark("7")]
    assert feed.taken == [("Pod", "ADDED", "a"), ("Pod", "DELETED", "a")]


@pytest.mark.parametrize(
    "hostile",
    [
        pytest.param(b'{"a":' * 100_000 + b"1" + b"}" * 100_000, id="deep-and-large"),
        pytest.param(b"[" * 20_000, id="no-JSON"),
        pytest.param(b'{"type": "ADDED"}', id="no-object"),
        pytest.param(b'{"type": "ADDED", "object": {"metadata": 7}}', id="no-metadata"),
        pytest.param(b"[]", id="no-event"),
    ],
)
async def test_an_event_that_cannot_be_read_is_left_out(feed: Feed, ask: Ask, hostile: bytes) -> None:
    content = line("ADDED", pod_body("a", 5)) + hostile + b"\n" + line("ADDED", pod_body("b", 6))
    assert await watched(await ask(f"{PODS}?watch=true", content)) == [bookmark("5"), bookmark("6")]
    assert [name for _, _, name in feed.taken] == ["a", "b"]


async def test_of_an_object_nested_too_deep_the_rest_is_taken(feed: Feed, ask: Ask) -> None:
    body = pod_body("deep", 5)
    text = json.dumps({"type": "ADDED", "object": body | {"spec": "SPEC"}})
    deep = b'{"a":' * 1_200 + b"1" + b"}" * 1_200
    content = text.encode().replace(b'"SPEC"', deep) + b"\n"
    assert await watched(await ask(f"{PODS}?watch=true", content)) == [bookmark("5")]
    assert feed.taken == [("Pod", "ADDED", "deep")]


@pytest.mark.parametrize("code", [410, 500])
async def test_whatever_goes_wrong_in_a_watch_it_begins_anew(ask: Ask, code: int) -> None:
    content = line("ERROR", {"kind": "Status", "code": code, "message": "too old"})
    assert await watched(await ask(f"{PODS}?watch=true", content)) == [{"type": "ERROR", "object": {"code": 410}}]


async def test_a_refusal_and_everything_else_are_kopfs_own(ask: Ask) -> None:
    response = await ask(f"{PODS}?watch=true", b'{"kind": "Status"}', 401)
    assert (response.status, await response.json(content_type=None)) == (401, {"kind": "Status"})
    other = await ask("/apis", b"{}")
    assert await other.read() == b"{}"
