"""The cluster that the tests run against, and what they do there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import helm_python
import yaml

from tests.support.waiting import wait_until

CHART = Path(__file__).parents[2] / "charts" / "graft"
SYSTEM, RELEASE = "graft-system", "graft"
ADAPTERS, ATTACHED, EXTRA = ("billing", "sql"), "legal", "extra"
"""In every claim `shelf`, beside the base: two of the pool's spec, that of a team, one that comes and goes."""
NODE = "e2e"
"""The name of the node of our own."""


class CommandError(Exception):
    """A command that failed, and what it wrote."""


@dataclass(frozen=True)
class Cluster:
    """Asked through kubectl and Helm, as its administrator does."""

    kubeconfig: Path
    kubectl_binary: str
    values: Mapping[str, Any]
    """Of the chart, for every install and upgrade: where the images are."""

    @classmethod
    def of_environment(cls) -> Cluster:
        prefix = os.environ.get("IMAGE_PREFIX", "")
        values = {
            "image": {"repository": f"{prefix}graft-operator"},
            "runtimeImage": {"repository": f"{prefix}graft-runtime"},
            "allowedPodTemplateFields": ["containers.image"],
        }
        return cls(Path(os.environ["KUBECONFIG"]), shutil.which("kubectl") or "kubectl", values)

    def kubectl(self, *arguments: str, input: str | None = None, timeout: float = 120.0) -> str:  # noqa: A002
        command = [self.kubectl_binary, "--kubeconfig", str(self.kubeconfig), *arguments]
        done = subprocess.run(command, check=False, input=input, capture_output=True, text=True, timeout=timeout)
        if done.returncode != 0:
            raise CommandError(f"kubectl {' '.join(arguments)}: {done.stderr.strip()}")
        return done.stdout

    def get(self, *arguments: str) -> Any:
        return json.loads(self.kubectl("get", *arguments, "-o", "json"))

    def apply(self, *objects: Mapping[str, Any], namespace: str = "default") -> None:
        self.kubectl("-n", namespace, "apply", "-f", "-", input=yaml.safe_dump_all(objects))

    def eventually(self, holds: Callable[[], Any], what: str, seconds: float = 180.0) -> None:
        """Wait until it holds; what can't be asked just now is asked again."""
        wait_until(holds, what, seconds, retried=(CommandError, subprocess.TimeoutExpired))

    def has_own_node(self) -> bool:
        """Whether its node is ours, so that its processes may be killed and its disk be written to."""
        return [item["metadata"]["name"] for item in self.get("nodes")["items"]] == [NODE]

    @contextmanager
    def helm(self) -> Iterator[helm_python.Config]:
        with helm_python.Config(kubeconfig_path=self.kubeconfig, namespace=SYSTEM) as config:
            yield config

    def install(self) -> None:
        with self.helm() as helm:
            helm.install(
                CHART, RELEASE, dict(self.values), namespace=SYSTEM, create_namespace=True, wait="watcher", timeout=180
            )

    def upgrade(self, **values: Any) -> None:
        with self.helm() as helm:
            helm.upgrade(
                CHART,
                RELEASE,
                {**self.values, **values},
                namespace=SYSTEM,
                wait="watcher",
                timeout=180,
                reset_values=True,
            )


@dataclass(frozen=True)
class Pool:
    """An AdapterDeployment that reads from the claim `shelf` of its namespace."""

    cluster: Cluster
    namespace: str
    name: str

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, **options)

    def apply(self, adapters: Sequence[str] = (), *, replicas: int = 2, **spec: Any) -> None:
        threads = {"name": "OMP_NUM_THREADS", "value": "1"}
        template = {"spec": {"containers": [{"name": "runtime", "env": [threads]}]}}
        manifest = {
            "apiVersion": "graft.dev/v1alpha1",
            "kind": "AdapterDeployment",
            "metadata": {"name": self.name},
            "spec": {
                "replicas": replicas,
                "baseModel": {"name": "tiny", "uri": "pvc://shelf/base", "dtype": "float32"},
                "sources": [{"name": "shelf", "claimName": "shelf"}],
                "adapters": [{"name": name, "uri": f"pvc://shelf/{name}"} for name in adapters],
                "accelerator": {"count": 0},
                "podTemplate": template,
            }
            | spec,
        }
        self.cluster.apply(manifest, namespace=self.namespace)

    def attach(self, name: str) -> None:
        """Create an Adapter of the pool, and wait until the pool answers for it."""
        spec = {"adapterDeploymentName": self.name, "uri": f"pvc://shelf/{name}"}
        adapter = {"apiVersion": "graft.dev/v1alpha1", "kind": "Adapter", "metadata": {"name": name}, "spec": spec}
        self.cluster.apply(adapter, namespace=self.namespace)
        self.kubectl("wait", "--for=condition=Ready", f"adapter/{name}", "--timeout=120s", timeout=130)

    def patch(self, **spec: Any) -> None:
        self.kubectl("patch", "ad", self.name, "--type=merge", "--patch", json.dumps({"spec": spec}))

    def get(self) -> Any:
        return self.cluster.get("ad", self.name, "-n", self.namespace)

    def condition(self, kind: str) -> tuple[str, str, str]:
        """Status, reason and message of a condition that speaks of the spec as it is."""
        found = self.get()
        for one in found.get("status", {}).get("conditions", ()):
            if one["type"] == kind and one["observedGeneration"] == found["metadata"]["generation"]:
                return one["status"], one["reason"], one["message"]
        return "Unknown", "", ""

    def pods(self) -> list[str]:
        items = self.cluster.get("pods", "-n", self.namespace, "-l", f"graft.dev/deployment={self.name}")["items"]
        return sorted(item["metadata"]["name"] for item in items)

    def settled(self, pods: int = 2) -> bool:
        """Ready, and no pod is there that is on its way."""
        return self.condition("Ready")[0] == "True" and len(self.pods()) == pods

    def wait_until_settled(self, pods: int = 2, seconds: float = 400.0) -> None:
        self.cluster.eventually(lambda: self.settled(pods), f"{pods} pods of {self.name} are Ready", seconds)
