"""A pool of two real pods with a tiny model and adapters, behind a Service."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError

from tests.support.processes import process_of
from tests.support.waiting import wait_until

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

    def point(self, adapter: str, uri: str) -> None:
        """Let an adapter's entry name another source."""
        names = [entry["name"] for entry in self.get()["spec"]["adapters"]]
        change = [{"op": "replace", "path": f"/spec/adapters/{names.index(adapter)}/uri", "value": uri}]
        self.kubectl("patch", f"ad/{POOL}", "--type=json", "-p", json.dumps(change))

    def pods(self) -> dict[str, str]:
        """The names of the pods, by UID."""
        pods = self.cluster.get("pods", "-n", NAMESPACE)["items"]
        return {pod["metadata"]["uid"]: pod["metadata"]["name"] for pod in pods}

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
        return process_of(self.cluster, *words, below=below)

    def eventually(self, holds: Callable[[], bool], what: str, deadline: float) -> None:
        """Wait until it holds, up to `deadline` of the monotonic clock; what can't be asked now is asked again."""
        wait_until(holds, what, deadline - time.monotonic(), retried=(LocalClusterError,))


def _restarts(statuses: Sequence[Mapping[str, Any]]) -> int:
    ready = bool(statuses) and all(status["ready"] for status in statuses)
    return sum(status["restartCount"] for status in statuses) if ready else -1


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
