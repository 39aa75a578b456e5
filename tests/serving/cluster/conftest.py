"""A pool of two real pods with a tiny model and adapters, behind a Service, on a cluster of its own."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from graft_local import demo, helm
from graft_local.cluster import LocalCluster
from graft_local.demo_client import wait_until_routed
from graft_local.errors import LocalClusterError
from graft_process_node.lifeline import descendants

NAMESPACE, POOL, SYSTEM = "team-a", "tiny", "graft-system"
BASE, ADAPTERS, EXTRA = "tiny", ("billing", "sql", "poems"), "extra"


@dataclass(frozen=True)
class Pool:
    """The pool `tiny` and what it stands on."""

    cluster: LocalCluster
    address: str
    """HOST:PORT of its Service."""
    names: tuple[str, ...] = (BASE, *ADAPTERS)
    """What is served all the time; the base first."""

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", NAMESPACE, *arguments, **options)

    def apply(self, *adapters: str) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps(_manifest(adapters)))

    def get(self) -> Any:
        return self.cluster.get("ad", POOL, "-n", NAMESPACE)

    def change(self) -> None:
        """Add the adapter `extra`, or take it away; whoever asks for the others must not notice."""
        there = [adapter["name"] for adapter in self.get()["spec"]["adapters"]]
        self.apply(*ADAPTERS, *([] if EXTRA in there else [EXTRA]))

    def digests(self) -> dict[str, str]:
        return {adapter["name"]: adapter["digest"] for adapter in self.get()["status"]["adapters"]}

    def is_ready(self) -> bool:
        """`Ready` is True, and speaks of the spec as it is."""
        found = self.get()
        ready = next(one for one in found["status"]["conditions"] if one["type"] == "Ready")
        return bool(ready["status"] == "True" and ready["observedGeneration"] == found["metadata"]["generation"])

    def ready_replicas(self) -> tuple[int, set[int]]:
        """On how many pods the status counts the pool as ready, and on how many its adapters."""
        status = self.get()["status"]
        return status["readyReplicas"], {adapter["readyReplicas"] for adapter in status["adapters"]}

    def restarts(self) -> dict[str, int]:
        """Of the container of each pod, by the pod's UID; -1 while it is not ready."""
        return self._restarts(NAMESPACE)

    def operator_restarts(self) -> dict[str, int]:
        """The same of the operator."""
        return self._restarts(SYSTEM)

    def _restarts(self, namespace: str) -> dict[str, int]:
        pods = self.cluster.get("pods", "-n", namespace)["items"]
        return {pod["metadata"]["uid"]: _restarts(pod["status"].get("containerStatuses", ())) for pod in pods}

    def process(self, *words: str, below: int | None = None) -> int:
        """The one process of this cluster, or below one, whose command line holds all these words."""
        root = self.cluster.process("supervisor") if below is None else below
        found = [pid for pid in descendants(root) if _runs(pid, words)]
        assert len(found) == 1, f"{len(found)} processes run {words}"
        return found[0]

    def eventually(self, holds: Callable[[], bool], what: str, deadline: float) -> None:
        """Wait until it holds, up to `deadline` of the monotonic clock; what can't be asked now is asked again."""
        while not _looks(holds):
            assert time.monotonic() < deadline, f"in time still not: {what}"
            time.sleep(0.1)


def _looks(holds: Callable[[], bool]) -> bool:
    try:
        return holds()
    except LocalClusterError:
        return False


def _restarts(statuses: Sequence[Mapping[str, Any]]) -> int:
    ready = bool(statuses) and all(status["ready"] for status in statuses)
    return sum(status["restartCount"] for status in statuses) if ready else -1


def _runs(pid: int, words: tuple[str, ...]) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended meanwhile
        return False
    return all(any(word == argument.rpartition("/")[2] for argument in command) for word in words)


def _manifest(adapters: Sequence[str]) -> dict[str, Any]:
    threads = {"name": "OMP_NUM_THREADS", "value": "1"}
    return {
        "apiVersion": "graft.dev/v1alpha1",
        "kind": "AdapterDeployment",
        "metadata": {"name": POOL},
        "spec": {
            "replicas": 2,
            "baseModel": {"name": BASE, "uri": "pvc://shelf/base", "dtype": "float32"},
            "sources": [{"name": "shelf", "claimName": "shelf"}],
            "accelerator": {"count": 0},
            "adapters": [{"name": name, "uri": f"pvc://shelf/{name}"} for name in adapters],
            "podTemplate": {"spec": {"containers": [{"name": "runtime", "env": [threads]}]}},
        },
    }


CLAIM = {
    "apiVersion": "v1",
    "kind": "PersistentVolumeClaim",
    "metadata": {"name": "shelf"},
    "spec": {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}},
}


@pytest.fixture(scope="module")
def checkpoints(tiny_base: Path, make_adapter: Callable[..., Path]) -> dict[str, Path]:
    """By name; the base's as well."""
    return {BASE: tiny_base} | {name: make_adapter(name) for name in (*ADAPTERS, EXTRA)}


@pytest.fixture(scope="module")
def pool(tmp_path_factory: pytest.TempPathFactory, checkpoints: dict[str, Path]) -> Iterator[Pool]:
    """Ready. Faults of its control plane hurt nobody else."""
    with LocalCluster.start(tmp_path_factory.mktemp("kills")) as cluster:
        helm.install(
            cluster.kubeconfig, "graft", demo.CHART, namespace=SYSTEM, values=demo.CHART_VALUES, create_namespace=True
        )
        cluster.kubectl("create", "namespace", NAMESPACE)
        shelf = cluster.claim_directory(NAMESPACE, "shelf")
        for name, checkpoint in checkpoints.items():
            shutil.copytree(checkpoint, shelf / ("base" if name == BASE else name))
        Pool(cluster, "").kubectl("apply", "-f", "-", input=json.dumps(CLAIM))
        Pool(cluster, "").apply(*ADAPTERS)
        Pool(cluster, "").kubectl("wait", "--for=condition=Ready", f"ad/{POOL}", "--timeout=200s", timeout=210.0)
        address = demo.service_address(cluster, NAMESPACE, POOL)
        wait_until_routed(address)
        yield Pool(cluster, address)
