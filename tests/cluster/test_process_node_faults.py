"""Kill -9 of the node agent, of a container's shim, of the API server: pods go on or come back, and nothing is left."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_process_node.container_process import MARKER

from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

# A grandchild in a session of its own, as deep as a stray can hide.
DEEP = "sleep 321 & setsid sh -c 'setsid sleep 321 & sleep 321' & while true; do sleep 0.1; done"


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A cluster of our own that we may hurt."""
    with LocalCluster.start(tmp_path_factory.mktemp("hurt")) as running:
        yield running


@pytest.fixture
def deep(cluster: LocalCluster, request: pytest.FixtureRequest) -> Iterator[str]:
    """A running pod with processes that hide; its name."""
    name = request.node.name.replace("_", "-")[:50].rstrip("-")
    container = {"name": "main", "image": "ignored", "command": ["sh", "-c", DEEP]}
    pod = {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name},
        "spec": {"terminationGracePeriodSeconds": 0, "containers": [container]},
    }
    cluster.kubectl("apply", "-f", "-", input=json.dumps(pod))
    cluster.kubectl("wait", f"pod/{name}", "--for=condition=Ready", "--timeout=20s")
    wait_until(lambda: len(processes_of(cluster, name)) >= 5, "all its processes run")
    yield name
    cluster.kubectl("delete", "pod", name, "--ignore-not-found")


def status(cluster: LocalCluster, name: str) -> Any:
    return cluster.get("pod", name)["status"]


def restarts(cluster: LocalCluster, name: str) -> int:
    try:
        return int(status(cluster, name)["containerStatuses"][0]["restartCount"])
    except LocalClusterError:  # the API server is away
        return -1


def is_ready(cluster: LocalCluster, name: str) -> bool:
    return bool(status(cluster, name)["containerStatuses"][0]["ready"])


def processes_of(cluster: LocalCluster, name: str) -> set[int]:
    """The living processes of a pod's container, found by their environment."""
    uid = cluster.get("pod", name)["metadata"]["uid"]
    wanted = f"{MARKER}={cluster.state}:{uid}:".encode()
    found = set()
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and wanted in (entry / "environ").read_bytes():
                found.add(int(entry.name))
        except OSError:
            continue
    return found


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


def test_a_killed_agent_leaves_no_process_and_its_successor_starts_the_pods_again(
    cluster: LocalCluster, deep: str
) -> None:
    before, address = processes_of(cluster, deep), status(cluster, deep)["podIP"]
    agent = cluster.process("node")

    os.kill(agent, signal.SIGKILL)

    wait_until(lambda: not any(map(is_alive, before)), "every process of the pod is gone", seconds=5)
    wait_until(lambda: restarts(cluster, deep) == 1 and is_ready(cluster, deep), "the pod runs again")
    found = status(cluster, deep)
    assert found["podIP"] == address
    assert found["containerStatuses"][0]["lastState"]["terminated"]["exitCode"] == 137
    assert cluster.process("node") != agent


def test_a_killed_shim_takes_its_container_along_and_it_restarts(cluster: LocalCluster, deep: str) -> None:
    before = processes_of(cluster, deep)
    main = int(status(cluster, deep)["containerStatuses"][0]["containerID"].removeprefix("process://"))
    shim = int(Path(f"/proc/{main}/stat").read_text().rpartition(")")[2].split()[1])

    os.kill(shim, signal.SIGKILL)

    wait_until(lambda: not any(map(is_alive, before)), "every process of the container is gone", seconds=5)
    wait_until(lambda: restarts(cluster, deep) == 1 and is_ready(cluster, deep), "the container runs again")


def test_pods_run_on_while_the_api_server_is_away(cluster: LocalCluster, deep: str) -> None:
    main = int(status(cluster, deep)["containerStatuses"][0]["containerID"].removeprefix("process://"))
    server = cluster.process("kube-apiserver")

    os.kill(server, signal.SIGKILL)
    os.kill(main, signal.SIGKILL)

    wait_until(lambda: restarts(cluster, deep) == 1, "what happened meanwhile is told")
    found = status(cluster, deep)["containerStatuses"][0]
    assert found["lastState"]["terminated"]["signal"] == 9
    assert is_ready(cluster, deep)


def test_when_the_cluster_stops_nothing_is_left(tmp_path: Path) -> None:
    with LocalCluster.start(tmp_path / "brief") as brief:
        container = {"name": "main", "image": "ignored", "command": ["sh", "-c", DEEP]}
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "deep"}, "spec": {"containers": [container]}}
        brief.kubectl("apply", "-f", "-", input=json.dumps(pod))
        brief.kubectl("wait", "pod/deep", "--for=condition=Ready", "--timeout=20s")
        found = processes_of(brief, "deep")

    assert found
    wait_until(lambda: not any(map(is_alive, found)), "every process is gone", seconds=5)
