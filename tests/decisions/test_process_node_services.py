"""What the proxy routes, and how it forwards."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from graft_local.services.connection import forward
from graft_local.services.routes import Route, make_routes, unsupported_parts
from graft_process_node.kube.selectors import matches_selector


def service(**spec: Any) -> dict[str, Any]:
    return {
        "metadata": {"name": "web", "namespace": "shop", "uid": "s-1"},
        "spec": {
            "clusterIP": "127.9.0.9",
            "selector": {"app": "web"},
            "ports": [{"port": 80, "targetPort": "http"}],
            **spec,
        },
    }


def pod(ip: str, *, ready: bool = True, namespace: str = "shop", **metadata: Any) -> dict[str, Any]:
    return {
        "metadata": {"namespace": namespace, "labels": {"app": "web", "x": "y"}, **metadata},
        "spec": {"containers": [{"ports": [{"name": "http", "containerPort": 8000}]}]},
        "status": {
            "podIP": ip,
            "phase": "Running",
            "conditions": [{"type": "Ready", "status": "True" if ready else "False"}],
        },
    }


def test_a_service_leads_to_its_ready_pods() -> None:
    pods = [
        pod("127.1.0.2"),
        pod("127.1.0.1"),
        pod("127.1.0.3", ready=False),
        pod("127.1.0.4", labels={"app": "other"}),
        pod("127.1.0.5", namespace="elsewhere"),
        pod("127.1.0.6", deletionTimestamp="2026-01-01T00:00:00Z"),
    ]

    routes = make_routes([service()], pods)

    assert routes == {("127.9.0.9", 80): Route("s-1", (("127.1.0.1", 8000), ("127.1.0.2", 8000)))}


def test_a_service_may_publish_pods_that_are_not_ready() -> None:
    (route,) = make_routes([service(publishNotReadyAddresses=True)], [pod("127.1.0.3", ready=False)]).values()

    assert route.targets == (("127.1.0.3", 8000),)


@pytest.mark.parametrize(
    ("port", "target"),
    [({"port": 80}, 80), ({"port": 80, "targetPort": 9}, 9), ({"port": 80, "targetPort": "no"}, None)],
)
def test_target_ports_are_numbers_names_or_the_port_itself(port: dict[str, Any], target: int | None) -> None:
    (route,) = make_routes([service(ports=[port])], [pod("127.1.0.1")]).values()

    assert [number for _, number in route.targets] == ([] if target is None else [target])


@pytest.mark.parametrize(
    ("spec", "routed", "parts"),
    [
        ({}, True, []),
        ({"clusterIP": "None"}, False, ["spec.clusterIP None (there is no DNS)"]),
        ({"type": "NodePort"}, True, ["spec.type NodePort (its ClusterIP is served)"]),
        ({"type": "LoadBalancer"}, True, ["spec.type LoadBalancer (its ClusterIP is served)"]),
        ({"type": "ExternalName", "clusterIP": ""}, False, ["spec.type ExternalName (there is no DNS)"]),
        ({"ports": [{"port": 53, "protocol": "UDP"}]}, False, ["spec.ports[0].protocol UDP"]),
        ({"sessionAffinity": "ClientIP"}, True, ["spec.sessionAffinity ClientIP"]),
        ({"selector": None}, False, []),
    ],
)
def test_what_is_not_done_is_said(spec: dict[str, Any], routed: bool, parts: list[str]) -> None:
    assert bool(make_routes([service(**spec)], [])) is routed
    assert unsupported_parts(service(**spec)) == parts


@pytest.mark.parametrize(
    ("selector", "matches"),
    [
        ({}, True),
        ({"matchLabels": {"a": "1"}}, True),
        ({"matchLabels": {"a": "2"}}, False),
        ({"matchExpressions": [{"key": "a", "operator": "In", "values": ["1"]}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "NotIn", "values": ["1"]}]}, False),
        ({"matchExpressions": [{"key": "a", "operator": "Exists"}]}, True),
        ({"matchExpressions": [{"key": "a", "operator": "DoesNotExist"}]}, False),
        ({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "Exists"}]}, False),
    ],
)
def test_label_selectors(selector: dict[str, Any], matches: bool) -> None:
    assert matches_selector(selector, {"a": "1"}) is matches


async def upper_case_at_the_end(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answers only when the client has closed its direction."""
    writer.write((await reader.read()).upper())
    writer.close()
    await writer.wait_closed()


async def test_each_direction_closes_by_itself() -> None:
    backend = await asyncio.start_server(upper_case_at_the_end, "127.0.0.1", 0)
    target = backend.sockets[0].getsockname()
    proxy = await asyncio.start_server(lambda r, w: forward(r, w, [("127.0.0.1", 1), target]), "127.0.0.1", 0)
    async with backend, proxy:
        reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
        writer.write(b"x" * 1_000_000)
        writer.write_eof()

        assert await reader.read() == b"X" * 1_000_000
        writer.close()
        await writer.wait_closed()


@pytest.mark.parametrize("targets", [[], [("127.0.0.1", 1)]])
async def test_without_a_pod_the_connection_is_reset(targets: list[tuple[str, int]]) -> None:
    proxy = await asyncio.start_server(lambda r, w: forward(r, w, targets), "127.0.0.1", 0)
    async with proxy:
        reader, writer = await asyncio.open_connection(*proxy.sockets[0].getsockname())
        with pytest.raises(ConnectionResetError):
            await asyncio.wait_for(reader.read(), 5)
        writer.close()
