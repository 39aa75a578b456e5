"""Manifests against the API server: good ones go in and stay as they are, bad ones are refused with what to do.

Each file in bad_manifests/ has one fault. Its head says what the API server (or kubectl) must tell, and, where that
differs, what our own validation must tell.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.resource import parse_manifest, parse_spec
from graft_runtime.errors import GraftError

from tests.support.definition import install_definition

BAD = sorted((Path(__file__).parent / "bad_manifests").glob("*.yaml"))
GOOD = """\
apiVersion: graft.dev/v1alpha1
kind: AdapterDeployment
metadata:
  name: support
spec:
  replicas: 2
  baseModel: {name: chat, uri: pvc://models/gemma, dtype: bfloat16}
  sources:
    - {name: models, claimName: models}
    - {name: shelf, mountPath: /mnt/shelf}
    - {name: hub, uriPrefixes: [hf://acme/, hf://acme-labs/chat/], secretName: hub, endpoint: "https://hub.example:8443/hf"}
    - {name: web, uriPrefixes: ["https://models.example/ours/"], secretName: web}
  adapters:
    - {name: billing, uri: pvc://models/billing, scale: 0.5, pinned: true}
    - {name: sql, uri: "file:///mnt/shelf/sql"}
    - {name: law, uri: hf://acme/law/v2/final, revision: refs/pr/1}
    - {name: tax, uri: "https://models.example/ours/tax-1.0.tar.gz"}
  engine: {maxRank: 16}
  accelerator: {count: 0}
  cache: {size: 20Gi}
  strategy: {maxSurge: 0, maxUnavailable: 1}
  podTemplate:
    metadata:
      labels: {team: a}
    spec:
      containers:
        - name: runtime
          volumeMounts: [{name: shelf, mountPath: /mnt/shelf}]
      volumes: [{name: shelf, hostPath: {path: /srv/shelf}}]
"""


def expectation(manifest: Path, key: str) -> str | None:
    prefix = f"# {key}: "
    lines = (line for line in manifest.read_text().splitlines() if line.startswith(prefix))
    return next((line.removeprefix(prefix) for line in lines), None)


@pytest.mark.parametrize("manifest", BAD, ids=lambda path: path.stem)
def test_our_validation_refuses(manifest: Path) -> None:
    expected = expectation(manifest, "expect from Python") or expectation(manifest, "expect")
    with pytest.raises(GraftError) as caught:
        parse_manifest(yaml.safe_load(manifest.read_text()))
    assert expected
    assert expected in caught.value.message
    assert len(caught.value.details) == 1, "one fault a file"


@pytest.fixture(scope="module")
def installed(local_cluster: LocalCluster) -> LocalCluster:
    install_definition(local_cluster)
    return local_cluster


@pytest.mark.cluster
@pytest.mark.parametrize("manifest", BAD, ids=lambda path: path.stem)
def test_the_api_server_refuses(installed: LocalCluster, manifest: Path) -> None:
    with pytest.raises(LocalClusterError) as caught:
        installed.kubectl("apply", "--dry-run=server", "-f", str(manifest))
    assert str(expectation(manifest, "expect")) in str(caught.value)


URIS = [
    "pvc://models/a",
    "pvc://models/a/b-c_d.e+f=g@h,i:j",
    "pvc://models/ünï/编",
    "pvc://models/...",
    "pvc://models/.hidden",
    "pvc://models/a.",
    "pvc://m/" + "a/" * 400 + "a",
    "file:///mnt/a",
    "file:///a",
    "",
    "/mnt/a",
    "models/a",
    "pvc:/models/a",
    "PVC://models/a",
    " pvc://models/a",
    "https://host/a",
    "https://host/a.zip",
    "https://host:8443/a/b.tar.gz",
    "https://host/a.zip/",
    "https://host/.zip",
    "https://host:port/a.zip",
    "https://[::1]/a.zip",
    "https://user@host/a.zip",
    "https:///a.zip",
    "hf://org/a",
    "hf://org/a/b/c",
    "hf://org",
    "hf://org/",
    "hf://org/a/",
    "hf:///a",
    "hf://.org/a",
    "hf://org/..",
    "hf://org/a/../b",
    "hf://org/ünï",
    "hf://org/a/ünï",
    "hf://org/" + "a" * 97,
    "pvc://",
    "pvc:///a",
    "pvc://models",
    "pvc://models/",
    "pvc://models/a/",
    "pvc://models//a",
    "pvc://Models/a",
    "pvc://-models/a",
    "pvc://models-/a",
    "pvc://mo.dels/a",
    "pvc://models/.",
    "pvc://models/..",
    "pvc://models/./a",
    "pvc://models/a/../b",
    "pvc://models/a/..",
    "pvc://../a",
    "pvc://models/a b",
    "pvc://models/a\tb",
    "pvc://models/a\n",
    "pvc://models/a\r\n",
    "pvc://models/a%2e%2e",
    "pvc://models/a?b",
    "pvc://models/a#b",
    "pvc://models/a\\b",
    "file://mnt/a",
    "file:////a",
    "file:///",
    "file:///mnt/../etc",
]
MOUNT_PATHS = [
    "/mnt",
    "/mnt/a-b_c.d",
    "/mnt/...",
    "/grafted",
    "/",
    "//",
    "mnt",
    "/mnt/",
    "/mnt//a",
    "/mnt/.",
    "/mnt/../a",
    "/mnt a",
    "/mnt\n",
    "/mnt:a",
    "/graft",
    "/graft/cache",
]


def refused_by_server(cluster: LocalCluster, spec: dict[str, Any], fields: str) -> set[int]:
    manifest = {**ADAPTER_DEPLOYMENT.type_meta, "metadata": {"name": "support"}, "spec": spec}
    with pytest.raises(LocalClusterError) as caught:
        cluster.kubectl("apply", "--dry-run=server", "-f", "-", input=json.dumps(manifest))
    return {int(index) for index in re.findall(fields, str(caught.value))}


def refused_by_us(spec: dict[str, Any], fields: str) -> set[int]:
    with pytest.raises(GraftError) as caught:
        parse_spec(spec)
    told = str(caught.value.details)
    assert "more" not in told, "every fault must be told for the comparison"
    return {int(index) for index in re.findall(fields, told)}


@pytest.mark.cluster
@pytest.mark.parametrize("start", range(0, len(URIS), 15))
def test_both_validations_refuse_the_same_uris(installed: LocalCluster, start: int) -> None:
    uris = URIS[start : start + 15]
    spec = {
        "baseModel": {"uri": "pvc://models/gemma"},
        "sources": [{"name": "models", "claimName": "models"}],
        "adapters": [{"name": f"a{number}", "uri": uri} for number, uri in enumerate([*uris, "never right"])],
    }
    fields = r"spec\.adapters\[(\d+)\]\.uri"
    assert refused_by_us(spec, fields) == refused_by_server(installed, spec, fields)


@pytest.mark.cluster
def test_both_validations_refuse_the_same_mount_paths(installed: LocalCluster) -> None:
    sources = [{"name": f"s{number}", "mountPath": path} for number, path in enumerate(MOUNT_PATHS)]
    spec = {
        "baseModel": {"uri": "pvc://models/gemma"},
        "sources": [*sources, {"name": "models", "claimName": "models"}],
    }
    fields = r"spec\.sources\[(\d+)\]\.mountPath"
    assert refused_by_us(spec, fields) == refused_by_server(installed, spec, fields)
    assert refused_by_us(spec, fields) == set(range(4, len(MOUNT_PATHS)))


@pytest.mark.cluster
def test_a_second_apply_changes_nothing(installed: LocalCluster, namespace: str) -> None:
    parse_manifest(yaml.safe_load(GOOD))
    installed.kubectl("--namespace", namespace, "apply", "-f", "-", input=GOOD)
    assert "unchanged" in installed.kubectl("--namespace", namespace, "apply", "-f", "-", input=GOOD)
    installed.kubectl("--namespace", namespace, "diff", "-f", "-", input=GOOD)  # fails where there is a difference
    stored = installed.kubectl(
        "--namespace", namespace, "get", "ad", "support", "-o", "jsonpath={.metadata.generation}"
    )
    assert stored == "1"


@pytest.mark.cluster
def test_what_no_operator_has_seen_is_not_taken_for_what_it_should_be(installed: LocalCluster, namespace: str) -> None:
    """Tools that wait (kstatus: Flux, Argo CD, kpt) compare both; an object without a status they take for current."""
    installed.kubectl("--namespace", namespace, "apply", "-f", "-", input=GOOD)
    found = installed.get("--namespace", namespace, "ad", "support")
    assert (found["metadata"]["generation"], found["status"]) == (1, {"observedGeneration": 0})


@pytest.mark.cluster
def test_the_scale_subresource_scales(installed: LocalCluster, namespace: str) -> None:
    installed.kubectl("--namespace", namespace, "apply", "-f", "-", input=GOOD)
    installed.kubectl("--namespace", namespace, "scale", "adapterdeployment/support", "--replicas=3")
    replicas = installed.kubectl("--namespace", namespace, "get", "ad/support", "-o", "jsonpath={.spec.replicas}")
    assert replicas == "3"


@pytest.mark.cluster
def test_kubectl_explains_the_fields(installed: LocalCluster) -> None:
    explained = " ".join(installed.kubectl("explain", "adapterdeployment.spec.strategy").split())
    assert "How many pods more than `replicas` there may be during a roll" in explained
