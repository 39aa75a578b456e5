"""Two operators as processes beside a real API server: one writes, and never two, whatever becomes of the leader.

Each has a `kubectl proxy` of its own between itself and the API server, whose log has each of its requests.
"""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import yaml
from graft_local.cluster import LocalCluster

from tests.support.definition import install_definition
from tests.support.processes import free_port
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

LEASE_SECONDS = 8
POOLS = 6
WRITE = re.compile(
    r"^I\d{4} (?P<at>[\d:.]+) .*verb=\"(?P<verb>PATCH|POST|PUT|DELETE)\" url=\"(?P<url>[^\"]+)\"", re.MULTILINE
)


class Write(NamedTuple):
    at: str
    """The time of the day, to the microsecond."""
    by: str
    verb: str
    path: str


@dataclass
class Candidate:
    """An operator, and the proxy that it asks the API server through."""

    name: str
    directory: Path
    proxy: subprocess.Popen[bytes]
    operator: subprocess.Popen[bytes]
    health_port: int

    @classmethod
    def start(cls, cluster: LocalCluster, namespace: str, name: str, directory: Path) -> Candidate:
        port, health_port = free_port(), free_port()
        kubeconfig = directory / f"{name}.kubeconfig"
        kubeconfig.write_text(
            yaml.safe_dump(
                {
                    "clusters": [{"name": "c", "cluster": {"server": f"http://127.0.0.1:{port}"}}],
                    "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
                    "users": [{"name": "c", "user": {}}],
                    "current-context": "c",
                }
            )
        )
        with (directory / f"{name}.proxy").open("wb") as log:
            binary = str(cluster.kubectl_binary)
            proxy = subprocess.Popen(
                [binary, "--kubeconfig", str(cluster.kubeconfig), "proxy", f"--port={port}", "-v=6"],
                stdout=log,
                stderr=log,
            )
        with (directory / f"{name}.log").open("wb") as log:
            operator = subprocess.Popen(
                [
                    *(sys.executable, "-m", "graft_operator", "run", "--namespace", namespace),
                    *("--runtime-image", "stub", "--watch-namespace", namespace, "--signing-key-secret", "key"),
                    *("--health-address", "127.0.0.1", "--health-port", str(health_port)),
                    *("--lease", "leader", "--lease-seconds", str(LEASE_SECONDS), "--identity", name),
                ],
                env={**os.environ, "KUBECONFIG": str(kubeconfig)},
                stdout=log,
                stderr=log,
            )
        return cls(name, directory, proxy, operator, health_port)

    @property
    def log(self) -> str:
        return (self.directory / f"{self.name}.log").read_text()

    def writes(self) -> list[Write]:
        """Return the requests of the operator that change something, the lease's and its Event left out."""
        text = (self.directory / f"{self.name}.proxy").read_text()
        paths = (re.sub(r"^http[^/]*//[^/]*|\?.*$", "", found["url"]) for found in WRITE.finditer(text))
        found = zip(WRITE.finditer(text), paths, strict=True)
        return [
            Write(match["at"], self.name, match["verb"], path)
            for match, path in found
            if not path.endswith(("/leases/leader", "/events"))
        ]

    def answers(self, path: str) -> str:
        """Return what the operator answers on its probes' port; empty where it does not, or says no."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.health_port}{path}", timeout=2) as answer:
                return str(answer.read().decode())
        except (OSError, urllib.error.HTTPError):
            return ""

    @property
    def leads(self) -> bool:
        return "graft_operator_leading 1.0" in self.answers("/metrics")

    def end(self) -> None:
        for process in (self.operator, self.proxy):
            if process.poll() is None:
                process.kill()
            process.wait(20)


@dataclass
class Stage:
    cluster: LocalCluster
    namespace: str
    candidates: list[Candidate]
    directory: Path

    def start(self, name: str) -> Candidate:
        self.candidates.append(Candidate.start(self.cluster, self.namespace, name, self.directory))
        return self.candidates[-1]

    def apply(self, **spec: Any) -> None:
        """Apply pools that need no pods."""
        pools = [
            {
                "apiVersion": "graft.dev/v1alpha1",
                "kind": "AdapterDeployment",
                "metadata": {"name": f"pool-{number}", "namespace": self.namespace},
                "spec": {
                    "replicas": 0,
                    "baseModel": {"name": "base", "uri": "pvc://shelf/base"},
                    "sources": [{"name": "shelf", "claimName": "shelf"}],
                    **spec,
                },
            }
            for number in range(POOLS)
        ]
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": pools}))

    def are_told(self) -> bool:
        """Tell whether the statuses are of the specs as they are."""
        pools = self.cluster.get("-n", self.namespace, "ad")["items"]
        return all(pool.get("status", {}).get("observedGeneration") == pool["metadata"]["generation"] for pool in pools)

    def holder(self) -> str:
        lease = self.cluster.get("-n", self.namespace, "lease", "leader")
        return str(lease["spec"].get("holderIdentity", ""))

    def how_it_stands(self) -> str:
        return "\n".join(f"== {each.name}\n{each.log[-1500:]}" for each in self.candidates)


@pytest.fixture
def stage(local_cluster: LocalCluster, namespace: str, tmp_path: Path) -> Iterator[Stage]:
    install_definition(local_cluster)
    found = Stage(local_cluster, namespace, [], tmp_path)
    yield found
    for candidate in found.candidates:
        if candidate.operator.poll() is None:
            candidate.operator.send_signal(signal.SIGCONT)
        candidate.end()


def test_one_of_two_operators_writes_whatever_becomes_of_the_leader(stage: Stage) -> None:
    def until(holds: Any, what: str) -> None:
        wait_until(holds, lambda: f"{what}\n{stage.how_it_stands()}")

    first = stage.start("first")
    until(lambda: first.leads, "the first to lead")
    stage.apply()
    until(stage.are_told, "the statuses by the first")
    second = stage.start("second")
    until(lambda: second.answers("/readyz") and "second stands by: first leads" in second.log, "the second to stand by")
    assert not second.leads

    # Stopped in the middle of its work, and for longer than its lease lasts.
    done = len(first.writes())
    stage.apply(adapters=[{"name": "a", "uri": "pvc://shelf/a"}])
    until(lambda: len(first.writes()) > done, "the first at work")
    first.operator.send_signal(signal.SIGSTOP)
    until(lambda: second.leads and stage.holder() == "second", "the second to lead")
    before = first.writes()
    until(stage.are_told, "the statuses by the second")
    stage.apply(suspend=True)
    first.operator.send_signal(signal.SIGCONT)
    assert first.operator.wait(20) == 1, stage.how_it_stands()
    assert "another operator may lead" in first.log
    until(stage.are_told, "the statuses of the last change")
    assert first.writes() == before, "it wrote after another one had come to lead"
    both = sorted(first.writes() + second.writes())
    changes = sum(one.by != other.by for one, other in itertools.pairwise(both))
    assert changes == 1, "writes of both between each other"

    # Ended in order: the next one leads at once, and long before the lease would end.
    third = stage.start("third")
    until(lambda: third.answers("/readyz") and "third stands by: second leads" in third.log, "the third to stand by")
    second.operator.terminate()
    assert second.operator.wait(20) == 0
    until(lambda: third.leads, "the third to lead")
    stage.apply(suspend=False)
    until(stage.are_told, "the statuses by the third")
    events = stage.cluster.get("-n", stage.namespace, "events", "--field-selector", "reason=LeaderElection")["items"]
    assert sorted(event["message"] for event in events) == ["first leads", "second leads", "third leads"]
    described = stage.cluster.kubectl("-n", stage.namespace, "describe", "lease", "leader")
    assert "third leads" in described
    assert stage.cluster.get("-n", stage.namespace, "lease", "leader")["spec"]["leaseTransitions"] == 2
