"""What users do wrong is told, in numbers and soon, under a real kubelet."""

from __future__ import annotations

import shutil
import time
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import Pool


@pytest.fixture(scope="module")
def other(pool: Pool, make_namespace: Any) -> str:
    """A second namespace with a claim of its own."""
    return str(make_namespace(f"{pool.namespace}-other"))


def test_a_pool_in_a_second_namespace(pool: Pool, other: str) -> None:
    second = Pool(pool.cluster, other, "tiny")
    second.apply(("billing",), replicas=1)
    second.wait_until_settled(1)
    assert pool.settled()
    second.kubectl("delete", "ad", "tiny", timeout=200)


@pytest.mark.quick
def test_a_limit_that_is_too_low_is_told_in_numbers(pool: Pool, other: str) -> None:
    small = Pool(pool.cluster, other, "small")
    memory = {"limits": {"memory": "300Mi"}, "requests": {"memory": "300Mi"}}
    limited = {"containers": [{"name": "runtime", "resources": memory}]}
    small.apply(replicas=1, podTemplate={"spec": limited})
    small.cluster.eventually(lambda: "NoCapacity" in "".join(small.condition("Ready")), "NoCapacity is told", 240)
    assert "MiB" in small.condition("Ready")[2]
    small.kubectl("delete", "ad", "small", timeout=200)


def test_files_that_can_t_be_read_are_told_with_owner_and_mode(
    pool: Pool, other: str, checkpoints: Path, tmp_path: Path, own_node: None
) -> None:
    """The kubelet gives files of a host path to no group, whatever the pod's fsGroup is."""
    shutil.copytree(checkpoints / "base", tmp_path / "base")
    (tmp_path / "base" / "model.safetensors").chmod(0o600)
    for parent in (tmp_path / "base", tmp_path, *tmp_path.parents):
        parent.chmod(parent.stat().st_mode | 0o055)
    pool.cluster.apply(*host_path_claim(tmp_path), namespace=other)
    refused = Pool(pool.cluster, other, "refused")
    base = {"name": "tiny", "uri": "pvc://raw/base", "dtype": "float32"}
    refused.apply(replicas=1, baseModel=base, sources=[{"name": "raw", "claimName": "raw"}])
    refused.cluster.eventually(lambda: refused.condition("Stalled")[1] == "Unreadable", "Unreadable is told", 240)
    assert "0600" in refused.condition("Stalled")[2]
    refused.kubectl("delete", "ad", "refused", timeout=200)


def test_an_image_that_can_t_be_had_is_told_at_once(pool: Pool, other: str) -> None:
    wrong = Pool(pool.cluster, other, "wrong")
    began = time.monotonic()
    wrong.apply(
        replicas=1, podTemplate={"spec": {"containers": [{"name": "runtime", "image": "graft.invalid/none:1"}]}}
    )
    wrong.cluster.eventually(lambda: wrong.condition("Stalled")[:2] == ("True", "PodsStuck"), "PodsStuck is told", 120)
    assert time.monotonic() - began < 120
    wrong.kubectl("delete", "ad", "wrong", timeout=200)


def test_a_pod_that_has_only_begun_ends_when_it_is_told_to(pool: Pool, other: str) -> None:
    young = Pool(pool.cluster, other, "young")
    young.apply(replicas=1)

    def runs() -> bool:
        items = young.cluster.get("pods", "-n", other, "-l", "graft.dev/deployment=young")["items"]
        return bool(items) and items[0]["status"]["phase"] == "Running"

    young.cluster.eventually(runs, "its container has begun")
    (pod,) = young.pods()
    young.kubectl("delete", "ad", "young", "--wait=false")
    young.cluster.eventually(lambda: pod not in young.pods(), "it has ended", 60)


def host_path_claim(path: Path) -> list[dict[str, Any]]:
    common: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "storageClassName": ""}
    volume = common | {"capacity": {"storage": "1Gi"}, "hostPath": {"path": str(path)}}
    claim = common | {"resources": {"requests": {"storage": "1Gi"}}, "volumeName": "raw"}
    return [
        {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": "raw"}, "spec": volume},
        {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "raw"}, "spec": claim},
    ]
