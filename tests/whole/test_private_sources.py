"""Private sources through all of it: chart, operator, Secrets that the node mounts, pods; and what the status says."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from graft_local import demo, helm
from graft_local.cluster import LocalCluster
from graft_local.demo_client import complete, wait_until_routed

from tests.support.hub import Hub, Origin
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

NAMESPACE, SYSTEM, POOL = "team-a", "graft-system", "private"
OPENED = {"allowedNetworks": ["127.0.0.0/8"], "allowedSchemes": ["hf", "https"]}
TOKEN, WRONG_TOKEN = "right-token", "wrong-token"
SECONDS = 60.0


@dataclass(frozen=True)
class Stage:
    """A cluster with the chart as it comes: no private address, no archives."""

    cluster: LocalCluster

    def kubectl(self, *arguments: str, **options: Any) -> str:
        return self.cluster.kubectl("-n", NAMESPACE, *arguments, **options)

    def apply(self, *objects: dict[str, Any]) -> None:
        self.kubectl("apply", "-f", "-", input=json.dumps({"apiVersion": "v1", "kind": "List", "items": objects}))

    def put_token(self, token: str, *hosts: str) -> None:
        data = {"token": token, "hosts": "\n".join(hosts)}
        self.apply({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "sources"}, "stringData": data})

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.cluster.get("ad", POOL, "-n", NAMESPACE).get("status", {})
        return found

    def reasons(self) -> dict[str, str]:
        """Of each adapter that has one, and of the condition Stalled."""
        status = self.status()
        found = {adapter["name"]: adapter["reason"] for adapter in status.get("adapters", ()) if "reason" in adapter}
        return found | {one["type"]: one["reason"] for one in status.get("conditions", ()) if one["type"] == "Stalled"}

    def restarts(self) -> dict[str, int]:
        return demo.pods(self.cluster, NAMESPACE, POOL)

    def eventually(self, told: Callable[[], Any], expected: Any) -> None:
        wait_until(lambda: told() == expected, lambda: f"{expected}, but {told()}: {self.status()}", SECONDS)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    with LocalCluster.start(tmp_path / "cluster") as cluster:
        values = demo.CHART_VALUES
        helm.install(cluster.kubeconfig, "graft", demo.CHART, namespace=SYSTEM, values=values, create_namespace=True)
        cluster.kubectl("create", "namespace", NAMESPACE)
        yield Stage(cluster)


@pytest.fixture
def private(hub: Hub, web: Origin, tiny_base: Path, make_adapter: Callable[..., Path]) -> None:
    """A base model and an adapter on the Hub, an adapter in an archive; all of them want the token."""
    hub.put("acme/base", hub.commit, _files(tiny_base), "v1")
    hub.put("acme/tuned", hub.commit, _files(make_adapter("tuned"), "final/"), "v1")
    hub.put("acme/tuned", hub.later, _files(make_adapter("later"), "final/"), "main")
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w:gz") as archive:
        archive.add(make_adapter("packed"), "packed")
    web.files["/private/packed.tar.gz"] = packed.getvalue()
    hub.token = web.token = TOKEN


def _files(directory: Path, below: str = "") -> dict[str, bytes]:
    return {below + path.name: path.read_bytes() for path in directory.iterdir() if path.is_file()}


def _objects(hub: Hub, web: Origin, certificate: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The pool, and before it the certificate that it needs to trust the archives' server."""
    trusted = x509.load_pem_x509_certificate(certificate.read_bytes()).public_bytes(serialization.Encoding.PEM)
    trust = {
        "apiVersion": "v1",
        "kind": "ConfigMap",
        "metadata": {"name": "trust"},
        "data": {"authority.pem": trusted.decode()},
    }
    runtime = {
        "name": "runtime",
        "env": [{"name": "SSL_CERT_FILE", "value": "/mnt/trust/authority.pem"}],
        "volumeMounts": [{"name": "trust", "mountPath": "/mnt/trust"}],
    }
    mount = {"volumes": [{"name": "trust", "configMap": {"name": "trust"}}], "containers": [runtime]}
    pool = {
        "apiVersion": "graft.dev/v1alpha1",
        "kind": "AdapterDeployment",
        "metadata": {"name": POOL},
        "spec": {
            "baseModel": {"name": "base", "uri": "hf://acme/base", "revision": "v1", "dtype": "float32"},
            "sources": [
                {"name": "hub", "uriPrefixes": ["hf://acme/"], "secretName": "sources", "endpoint": hub.url},
                {"name": "web", "uriPrefixes": [f"{web.url}/private/"], "secretName": "sources"},
            ],
            "accelerator": {"count": 0},
            "adapters": [
                {"name": "tuned", "uri": "hf://acme/tuned/final", "revision": "v1"},
                {"name": "packed", "uri": f"{web.url}/private/packed.tar.gz"},
            ],
            "podTemplate": {"spec": mount},
        },
    }
    return trust, pool


@pytest.mark.usefixtures("private")
def test_from_a_forbidden_address_by_a_wrong_token_to_an_answer(
    stage: Stage, hub: Hub, web: Origin, certificate: Path
) -> None:
    hosts = [urlsplit(server.url).netloc for server in (hub, web)]
    stage.put_token(WRONG_TOKEN, *hosts)
    stage.apply(*_objects(hub, web, certificate))
    everywhere = {"tuned": "ForbiddenAddress", "packed": "SourceNotDeclared", "Stalled": "ForbiddenAddress"}
    stage.eventually(stage.reasons, everywhere)
    assert not hub.asked, "nobody has connected to it"

    older = stage.restarts().keys()

    # The administrator allows loopback and archives, which rolls the pods; now the token is wrong.
    values = demo.CHART_VALUES | OPENED
    helm.upgrade(stage.cluster.kubeconfig, "graft", demo.CHART, namespace=SYSTEM, values=values)
    stage.eventually(stage.reasons, dict.fromkeys(("tuned", "packed", "Stalled"), "Unauthorized"))
    told = stage.status()["conditions"] + stage.status()["adapters"]
    assert not any(WRONG_TOKEN in str(one) for one in told)
    (pod,) = stage.restarts().keys() - older  # the older one waits for its successor to be Ready

    # The Secret is corrected: that is all.
    stage.put_token(TOKEN, *hosts)
    stage.kubectl("wait", "--for=condition=Ready", f"ad/{POOL}", "--timeout=120s", timeout=130.0)
    assert stage.restarts()[pod] == 0
    assert stage.restarts().keys() <= {pod, *older}
    tuned, packed = stage.status()["adapters"]
    assert (tuned["requestedRevision"], tuned["revision"]) == ("v1", hub.commit)
    assert tuned["digest"].startswith("sha256:")
    assert packed["digest"].startswith("sha256:")
    assert "revision" not in packed
    address = demo.service_address(stage.cluster, NAMESPACE, POOL)
    wait_until_routed(address)
    answers = {name: complete(address, name, "hello", max_tokens=8).text for name in ("base", "tuned", "packed")}
    assert len(set(answers.values())) == 3
    logs = stage.kubectl("logs", f"deployment/{POOL}", "--tail=-1")
    assert TOKEN not in logs
    assert WRONG_TOKEN not in logs
