"""Manifests against the API server: good ones go in and stay as they are, bad ones are refused with what to do.

Each file in bad_manifests/ has one fault. Its head says what the API server (or kubectl) must tell, and, where that
differs, what our own validation must tell.
"""

from __future__ import annotations

from pathlib import Path

import pytest
import yaml
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.api import parse_manifest
from graft_operator.crd import CRD_FILE
from graft_runtime.errors import GraftError

ROOT = Path(__file__).parents[2]
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
  adapters:
    - {name: billing, uri: pvc://models/billing, scale: 0.5, pinned: true}
    - {name: sql, uri: "file:///mnt/shelf/sql"}
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
    local_cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / CRD_FILE))
    local_cluster.kubectl(
        "wait", "--for=condition=Established", "customresourcedefinition/adapterdeployments.graft.dev"
    )
    return local_cluster


@pytest.mark.cluster
@pytest.mark.parametrize("manifest", BAD, ids=lambda path: path.stem)
def test_the_api_server_refuses(installed: LocalCluster, manifest: Path) -> None:
    with pytest.raises(LocalClusterError) as caught:
        installed.kubectl("apply", "--dry-run=server", "-f", str(manifest))
    assert str(expectation(manifest, "expect")) in str(caught.value)


@pytest.mark.cluster
def test_a_second_apply_changes_nothing(installed: LocalCluster, namespace: str) -> None:
    parse_manifest(yaml.safe_load(GOOD))
    for _ in range(2):
        installed.kubectl("--namespace", namespace, "apply", "-f", "-", input=GOOD)
    installed.kubectl("--namespace", namespace, "diff", "-f", "-", input=GOOD)  # fails where there is a difference
    stored = installed.kubectl(
        "--namespace", namespace, "get", "ad", "support", "-o", "jsonpath={.metadata.generation}"
    )
    assert stored == "1"


@pytest.mark.cluster
def test_the_scale_subresource_scales(installed: LocalCluster, namespace: str) -> None:
    installed.kubectl("--namespace", namespace, "apply", "-f", "-", input=GOOD)
    installed.kubectl("--namespace", namespace, "scale", "adapterdeployment/support", "--replicas=3")
    replicas = installed.kubectl("--namespace", namespace, "get", "ad/support", "-o", "jsonpath={.spec.replicas}")
    assert replicas == "3"


@pytest.mark.cluster
def test_kubectl_explains_the_fields(installed: LocalCluster) -> None:
    explained = installed.kubectl("explain", "adapterdeployment.spec.strategy")
    assert "Pods above `replicas` during a roll" in explained
