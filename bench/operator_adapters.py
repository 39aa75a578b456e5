"""Adapters that are attached to many pools, for `operator_scale`: made, and changed one after the other."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator

from graft_operator.clients.cluster import Cluster
from graft_operator.kinds import ADAPTER
from graft_operator.objects import KubernetesObject

CREATE_AT_ONCE = 16
CHANGES = 20
LOOK_SECONDS = 0.01
POLL_SECONDS = 1.0


async def create_all(cluster: Cluster, bodies: Iterator[KubernetesObject]) -> None:
    """Create objects, several at once."""

    async def create_some() -> None:
        for body in bodies:
            await cluster.create(body)

    await asyncio.gather(*(create_some() for _ in range(CREATE_AT_ONCE)))


async def attach(cluster: Cluster, namespace: str, pools: int, adapters: int) -> float:
    """Create Adapters and wait until the status of each tells of it; return the seconds that it took."""
    began = time.monotonic()
    await create_all(cluster, (_adapter(namespace, number, pools) for number in range(adapters)))
    while True:
        if await _all_told(cluster, namespace):
            return time.monotonic() - began
        await asyncio.sleep(POLL_SECONDS)


async def change_some(cluster: Cluster, namespace: str, adapters: int) -> list[float]:
    """Change a few of them one after the other; return of each the seconds until its status tells of that."""
    return [await _change(cluster, namespace, number) for number in range(min(CHANGES, adapters))]


async def _change(cluster: Cluster, namespace: str, number: int) -> float:
    """Change one Adapter; return the seconds until its status tells of that."""
    body = await cluster.get(ADAPTER.name, namespace, f"adapter-{number}")
    assert body is not None
    changed = {**ADAPTER.type_meta, "metadata": {"namespace": namespace, "name": f"adapter-{number}"}}
    began = time.monotonic()
    await cluster.apply({**changed, "spec": {**body["spec"], "scale": 0.5}}, uid=body["metadata"]["uid"])
    while True:
        body = await cluster.get(ADAPTER.name, namespace, f"adapter-{number}")
        if body is not None and _is_told(body):
            return time.monotonic() - began
        await asyncio.sleep(LOOK_SECONDS)


async def _all_told(cluster: Cluster, namespace: str) -> bool:
    pages = [page async for page in cluster.pages(ADAPTER.name, namespace, None)]
    return all(_is_told(body) for page in pages for body in page.items)


def _is_told(body: KubernetesObject) -> bool:
    return bool(body.get("status", {}).get("observedGeneration") == body["metadata"]["generation"])


def _adapter(namespace: str, number: int, pools: int) -> KubernetesObject:
    name = f"adapter-{number}"
    return {
        **ADAPTER.type_meta,
        "metadata": {"namespace": namespace, "name": name},
        "spec": {
            "adapterDeploymentName": f"pool-{number % pools}",
            "uri": f"pvc://shelf/{name}",
            "digest": f"sha256:{number:064x}",
        },
    }
