"""Lists come in pages that the operator can hold, and an object that can't be read keeps no other from it."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable

import pytest
from aiohttp import web
from graft_operator.clients import cluster as cluster_module
from graft_operator.clients.cluster import Cluster, Page
from kubernetes.aio.client import Configuration

from tests.support.bodies import pod_body

Serve = Callable[["ApiServer"], Awaitable[Cluster]]
DEEP = b'{"a":' * 100_000 + b"1" + b"}" * 100_000


class ApiServer:
    """Lists pods, `limit` at a time; the token of the next page is how many came before it."""

    def __init__(self, pods: list[bytes]) -> None:
        self.pods = pods
        self.limits: list[int] = []

    async def answer(self, request: web.Request) -> web.Response:
        first, limit = int(request.query.get("continue", "0")), int(request.query["limit"])
        end = first + limit
        metadata = {"resourceVersion": "7"} | ({"continue": str(end)} if end < len(self.pods) else {})
        if "as=Table" in request.headers["Accept"]:
            assert request.query["includeObject"] == "None"
            return web.json_response({"metadata": metadata, "rows": [{"cells": [f"pod-{first}"]}]})
        self.limits.append(limit)
        items = b",".join(self.pods[first:end])
        return web.Response(body=b'{"items":[' + items + b'],"metadata":' + json.dumps(metadata).encode() + b"}")


@pytest.fixture
async def serve() -> AsyncIterator[Serve]:
    runners: list[web.AppRunner] = []
    clusters: list[Cluster] = []

    async def start(server: ApiServer) -> Cluster:
        application = web.Application()
        application.router.add_get("/api/v1/namespaces/team/pods", server.answer)
        runner = web.AppRunner(application)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        runners.append(runner)
        clusters.append(Cluster(Configuration(host=f"http://127.0.0.1:{runner.addresses[0][1]}")))
        return clusters[-1]

    yield start
    for cluster in clusters:
        await cluster.close()
    for runner in runners:
        await runner.cleanup()


def pods(count: int, **replaced: bytes) -> list[bytes]:
    """Make pods as JSON. `replaced`: `at_3=…` for the third's."""
    bodies = [json.dumps(pod_body(f"pod-{number}")).encode() for number in range(count)]
    for place, body in replaced.items():
        bodies[int(place.removeprefix("at_"))] = body
    return bodies


async def pages_of(cluster: Cluster) -> list[Page]:
    return [page async for page in cluster.pages("Pod", "team", None)]


def names(pages: list[Page]) -> list[str]:
    return [body["metadata"]["name"] for page in pages for body in page.items]


async def test_small_objects_come_all_at_once(serve: Serve) -> None:
    server = ApiServer(pods(300))
    pages = await pages_of(await serve(server))
    assert names(pages) == [f"pod-{number}" for number in range(300)]
    assert server.limits == [500]
    assert [page.version for page in pages] == ["7"]


async def test_large_objects_come_in_smaller_pages(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "PAGE_BYTES", 20_000)
    server = ApiServer(pods(300))
    pages = await pages_of(await serve(server))
    assert names(pages) == [f"pod-{number}" for number in range(300)]
    assert max(len(page.items) for page in pages) * len(server.pods[0]) < 20_000
    assert sum(server.limits) < 3 * 300, "few are asked for in vain"


async def test_small_objects_after_a_large_one_come_all_at_once(serve: Serve, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster_module, "PAGE_BYTES", 400_000)
    large = json.dumps(pod_body("large", text="x" * 350_000)).encode()
    server = ApiServer(pods(400, at_0=large))
    assert len(names(await pages_of(await serve(server)))) == 400
    assert len(server.limits) < 10


@pytest.mark.parametrize(
    "hostile", [pytest.param(DEEP, id="deep"), pytest.param(b'"' + b"x" * 200_000 + b'"', id="large")]
)
async def test_one_that_cannot_be_read_is_named_and_left_out(
    serve: Serve, monkeypatch: pytest.MonkeyPatch, hostile: bytes
) -> None:
    if hostile is not DEEP:
        monkeypatch.setattr(cluster_module, "PAGE_BYTES", 100_000)
        monkeypatch.setattr(cluster_module, "ANSWER_BYTES", 100_000)
    server = ApiServer(pods(30, at_3=hostile, at_29=hostile))
    pages = await pages_of(await serve(server))
    assert names(pages) == [f"pod-{number}" for number in range(30) if number not in (3, 29)]
    assert [page.unreadable for page in pages if page.unreadable] == ["pod-3", "pod-29"]
