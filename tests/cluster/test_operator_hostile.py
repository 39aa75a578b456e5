"""One operator with 512 MiB for two namespaces: what could stop or fill it is in one, and the other goes on."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import resource
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.clients.cluster import Cluster, ConflictError, UnavailableError
from graft_operator.kinds import ADAPTER_DEPLOYMENT, CONFIG_MAP, NETWORK_POLICY, POD
from graft_operator.resource.crd import CRD_FOLDER
from kubernetes.aio.client import Configuration
from kubernetes.aio.config import load_kube_config

from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(900)]

ROOT = Path(__file__).parents[2]
STUB = Path(__file__).parent / "stub_runtime.py"
MIB = 2**20
MEMORY = 512 * MIB
SECONDS = 240.0
POOLS = 60
LARGE = 40
"""ConfigMaps of a MiB."""


@dataclass
class Operator:
    """An operator for both namespaces that gets no more memory than it may have."""

    cluster: LocalCluster
    directory: Path
    namespaces: tuple[str, str]
    port: int
    started: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def start(self) -> None:
        watched = [part for namespace in self.namespaces for part in ("--watch-namespace", namespace)]
        with (self.directory / "operator.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "graft_operator", "run", "--namespace", self.namespaces[0], *watched),
                    *("--runtime-image", "stub", "--bind-address", "podIP", "--signing-key-secret", "signing-key"),
                    *(
                        "--health-address",
                        "127.0.0.1",
                        "--health-port",
                        str(self.port),
                        "--allowed-pod-template-field",
                        "containers.env",
                    ),
                ],
                env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
                stdout=log,
                stderr=log,
            )
        resource.prlimit(process.pid, resource.RLIMIT_DATA, (MEMORY, MEMORY))
        self.started.append(process)

    def stop(self) -> None:
        for process in self.started:
            process.send_signal(signal.SIGTERM)
            process.wait(30)
        self.started.clear()

    @property
    def log(self) -> str:
        return (self.directory / "operator.log").read_text()

    @property
    def peak(self) -> int:
        """Return the most bytes that it has had in memory; fail where it has ended."""
        (process,) = self.started
        assert process.poll() is None, f"the operator has ended: {self.log[-3000:]}"
        status = (Path("/proc") / str(process.pid) / "status").read_text()
        return int(re.findall(r"^VmHWM:\s+(\d+) kB$", status, re.MULTILINE)[0]) * 1024


@pytest.fixture
def operator(local_cluster: LocalCluster, namespace: str, tmp_path: Path, unused_tcp_port: int) -> Iterator[Operator]:
    local_cluster.kubectl("apply", "--server-side", "-f", str(ROOT / CRD_FOLDER))
    bad = f"{namespace}-bad"
    local_cluster.kubectl("create", "namespace", bad)
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shelf"}, "spec": claim}
    for place in (namespace, bad):
        local_cluster.kubectl("-n", place, "apply", "-f", "-", input=json.dumps(body))
    program = tmp_path / "graft-runtime"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
    program.chmod(0o755)
    found = Operator(local_cluster, tmp_path, (namespace, bad), unused_tcp_port)
    found.start()
    yield found
    for process in found.started:
        process.kill()
        process.wait()
    local_cluster.kubectl("delete", "namespace", bad, "--wait=false")


def test_a_hostile_namespace_costs_no_other_its_operator(
    operator: Operator, record_property: Callable[[str, object], None]
) -> None:
    good, bad = operator.namespaces

    def told(name: str, value: object) -> None:
        record_property(name, value)
        sys.stdout.write(f"{name}: {value}\n")

    told("seconds to Ready, quiet", until_ready(operator, "quiet", adapters=[adapter("a")]))
    asyncio.run(make_hostile(operator, bad))
    told("seconds to Ready, beside a hostile namespace", until_ready(operator, "beside", adapters=[adapter("a")]))
    told("seconds to a new adapter beside it", until_ready(operator, "quiet", adapters=[adapter("a"), adapter("b")]))
    told("peak MiB", operator.peak // MIB)
    assert operator.peak < MEMORY

    operator.stop()
    operator.start()
    told("seconds to Ready after a restart", until_ready(operator, "restarted", adapters=[adapter("a")]))
    told("peak MiB after a restart", operator.peak // MIB)
    assert operator.peak < MEMORY
    assert operator.log.count("Traceback") == 0, operator.log[-5000:]

    # What can be told is told where it belongs.
    assert conditions(operator, bad, "deep")["Stalled"][0] == "True"
    wait_until(
        lambda: "4194304 bytes" in conditions(operator, bad, "floods")["Ready"][2],
        lambda: f"the flood to be told: {conditions(operator, bad, 'floods')}",
        SECONDS,
    )
    assert operator.cluster.get("-n", good, "ad", "quiet")["status"]["adapterCounts"]["ready"] == 2


def adapter(name: str) -> dict[str, str]:
    return {"name": name, "uri": f"pvc://shelf/{name}"}


def pool(operator: Operator, namespace: str, name: str, **spec: Any) -> dict[str, Any]:
    env = [{"name": "PATH", "value": f"/usr/bin:{operator.directory}:/bin"}]
    return {
        **ADAPTER_DEPLOYMENT.type_meta,
        "metadata": {"name": name, "namespace": namespace},
        "spec": {
            "replicas": 1,
            "baseModel": {"name": "base", "uri": "pvc://shelf/base"},
            "sources": [{"name": "shelf", "claimName": "shelf"}],
            "accelerator": {"count": 0},
            "terminationGracePeriodSeconds": 15,
            "podTemplate": {"spec": {"containers": [{"name": "runtime", "env": env}]}},
            **spec,
        },
    }


def until_ready(operator: Operator, name: str, **spec: Any) -> float:
    """Apply a pool in the good namespace, and return the seconds until it is Ready as it is now."""
    good, _ = operator.namespaces
    operator.cluster.kubectl("apply", "-f", "-", input=json.dumps(pool(operator, good, name, **spec)))
    started = time.monotonic()
    wait_until(
        lambda: conditions(operator, good, name)["Ready"][0] == "True",
        lambda: f"{name} to be Ready: {conditions(operator, good, name)}\n{operator.log[-3000:]}",
        SECONDS,
        retried=(LocalClusterError, KeyError),
    )
    return round(time.monotonic() - started, 1)


def conditions(operator: Operator, namespace: str, name: str) -> dict[str, tuple[str, str, str]]:
    """Return the conditions that speak of the pool as it is now."""
    fields = "jsonpath={.metadata.generation} {.status.conditions}"  # the whole may be nested too deep for Python
    answer = operator.cluster.kubectl("-n", namespace, "get", "ad", name, "-o", fields)
    generation, _, found = answer.partition(" ")
    return {
        one["type"]: (one["status"], one["reason"], one.get("message", ""))
        for one in json.loads(found or "[]")
        if one["observedGeneration"] == int(generation)
    }


async def make_hostile(operator: Operator, bad: str) -> None:
    """Make one of everything, and many of some."""
    configuration = Configuration()
    await load_kube_config(str(operator.cluster.kubeconfig), client_configuration=configuration, persist_config=False)
    cluster = Cluster(configuration)
    try:
        for name in ("floods", "babbles"):
            base = {"name": "base", "uri": f"pvc://shelf/{name}"}
            await cluster.create(pool(operator, bad, name, baseModel=base, adapters=[adapter("a")]))
        nested(operator, ADAPTER_DEPLOYMENT.path(bad), json.dumps(pool(operator, bad, "deep", podTemplate="DEEP")))
        owner = await cluster.get(ADAPTER_DEPLOYMENT.name, bad, "floods")
        assert owner is not None
        content = {"adapter-set.json.gz": bomb()}
        await cluster.create(config_map(bad, "bomb-of-nobody", "floods", binaryData=content))
        forged = {**ADAPTER_DEPLOYMENT.type_meta, "name": "floods", "uid": owner["metadata"]["uid"], "controller": True}
        body = config_map(bad, "bomb-of-a-pool", "floods", binaryData=content)
        body["metadata"]["ownerReferences"] = [forged]
        body["metadata"]["labels"]["graft.dev/config-hash"] = "0123456789"
        await cluster.create(body)
        # Text of control characters: six times as long in JSON.
        large = [config_map(bad, f"large-{n}", f"x-{n}", data={"a": "\x01" * 150_000}) for n in range(LARGE)]
        for start in range(0, LARGE, 4):
            await asyncio.gather(*(create(cluster, body) for body in large[start : start + 4]))
        # Whoever writes an object may write these as well. No ConfigMap: the nodes of these tests would not survive it.
        fields = '{"manager":"x","operation":"Update","apiVersion":"networking.k8s.io/v1","fieldsType":"FieldsV1",'
        metadata = {"name": "fields", "namespace": bad, "labels": {"graft.dev/deployment": "floods"}}
        text = json.dumps({**NETWORK_POLICY.type_meta, "metadata": metadata, "spec": {"podSelector": {}}})
        text = text.replace('"metadata": {', f'"metadata": {{"managedFields": [{fields}"fieldsV1":DEEP}}], ', 1)
        nested(operator, NETWORK_POLICY.path(bad), text)
        await cluster.create(
            {
                **POD.type_meta,
                "metadata": {"name": "foreign", "namespace": bad, "labels": {"graft.dev/deployment": "floods"}},
                "spec": {"containers": [{"name": "runtime", "image": "stub"}], "nodeName": "nowhere"},
            }
        )
        for number in range(POOLS):
            body = pool(operator, bad, f"many-{number:02}-{'x' * 44}"[:52], replicas=0)
            body["metadata"]["annotations"] = {"text": "y" * 50_000}
            body["spec"]["adapters"] = [{"name": f"a{n}", "uri": f"pvc://shelf/{'z' * 900}"} for n in range(10)]
            await create(cluster, body)
    finally:
        await cluster.close()


async def create(cluster: Cluster, body: dict[str, Any]) -> None:
    """Create an object, however long the API server takes."""
    while True:
        try:
            await cluster.create(body)
        except UnavailableError:
            continue
        except ConflictError:
            return
        return


def nested(operator: Operator, path: str, text: str) -> None:
    """Create an object of which a part is nested 1,200 deep; Python's own JSON can't write it."""
    deep = '{"f:a":' * 1200 + "{}" + "}" * 1200
    spec = '{"spec":' + deep + "}"
    body = text.replace('"podTemplate": "DEEP"', f'"podTemplate": {spec}').replace("DEEP", deep)
    operator.cluster.kubectl("create", "--raw", path, "-f", "-", input=body)


def config_map(namespace: str, name: str, owner: str, **content: Any) -> dict[str, Any]:
    labels = {"graft.dev/deployment": owner}
    return {**CONFIG_MAP.type_meta, "metadata": {"name": name, "namespace": namespace, "labels": labels}, **content}


def bomb() -> str:
    """Return 700 KiB that are 700 MiB once unpacked."""
    packing = zlib.compressobj(9, wbits=31)
    content = b"".join([*(packing.compress(b"[" * MIB) for _ in range(700)), packing.flush()])
    return base64.b64encode(content).decode()
