"""The chart from nothing, a pool of two pods, and traffic that goes on through all tests, in the order of the files."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.cluster import ADAPTERS, ATTACHED, EXTRA, NODE, SYSTEM, Cluster, Pool
from tests.e2e.traffic import Traffic
from tests.support.adapters import build_adapter
from tests.support.bases import build_base

NAMESPACE = "graft-e2e"


REPORT = "GRAFT_E2E_REPORT"
"""The variable of `make e2e` with the directory for its report."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    ours = [item for item in items if Path(__file__).parent in item.path.parents]
    for item in ours:
        item.add_marker(pytest.mark.timeout(900))
        if REPORT not in os.environ:
            item.add_marker(pytest.mark.skip(reason="needs a cluster: make e2e"))


@pytest.fixture(scope="session")
def cluster() -> Cluster:
    return Cluster.of_environment()


@pytest.fixture(scope="session")
def seconds() -> dict[str, float]:
    """How long each step took, since `helm install` began."""
    return {}


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a tiny base and adapters, as PEFT saves them: their files are for their owner alone."""
    shelf = tmp_path_factory.mktemp("shelf")
    base = build_base(shelf / "base")
    for name in (*ADAPTERS, ATTACHED, EXTRA):
        build_adapter(base, shelf / name, sum(name.encode()))
    return shelf


@pytest.fixture(scope="session")
def image(cluster: Cluster) -> str:
    """The operator's: it has Python."""
    return f"{cluster.values['image']['repository']}:0.1.0"


@pytest.fixture(scope="session")
def make_namespace(cluster: Cluster, checkpoints: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """`make_namespace(name)`: with the claim `shelf`, filled by a root user, as a trainer does."""

    def make(name: str) -> str:
        cluster.kubectl("create", "namespace", name)
        claim: dict[str, Any] = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
        if cluster.has_own_node():
            path = tmp_path_factory.mktemp("volume")
            path.chmod(0o755)
            cluster.apply(_volume(name, path))
            claim |= {"storageClassName": "", "volumeName": name}
        cluster.apply(
            {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shelf"}, "spec": claim},
            _filler(f"{cluster.values['runtimeImage']['repository']}:0.1.0"),
            namespace=name,
        )
        cluster.kubectl("-n", name, "wait", "--for=condition=Ready", "pod/filler", "--timeout=180s", timeout=190)
        for directory in sorted(checkpoints.iterdir()):
            cluster.kubectl("-n", name, "cp", str(directory), f"filler:/shelf/{directory.name}")
        # The kubelet gives the files of a volume to a pod's group where no other pod has mounted it. With no grace
        # period the pod would be gone before its volumes are.
        cluster.kubectl("-n", name, "delete", "pod", "filler")
        return name

    return make


@pytest.fixture(scope="session")
def pool(cluster: Cluster, make_namespace: Any, seconds: dict[str, float], image: str) -> Iterator[Pool]:
    namespace = make_namespace(NAMESPACE)
    began = time.monotonic()
    cluster.install()
    seconds["operator Ready"] = time.monotonic() - began
    pool = Pool(cluster, namespace, "tiny")
    pool.apply(ADAPTERS)
    pool.kubectl("wait", "--for=condition=Ready", "ad/tiny", "--timeout=400s", timeout=410)
    seconds["two pods Ready"] = time.monotonic() - began
    pool.attach(ATTACHED)
    yield pool
    if not cluster.has_own_node():
        for name in cluster.kubectl("get", "namespaces", "-o", "name").split():
            if name.startswith(f"namespace/{NAMESPACE}"):
                cluster.kubectl("delete", name, timeout=300)
        with cluster.helm() as helm:
            helm.uninstall("graft", ignore_not_found=True, wait="watcher", timeout=180)
        cluster.kubectl("delete", "namespace", SYSTEM, "--ignore-not-found", timeout=300)


@pytest.fixture(scope="session")
def traffic(pool: Pool, image: str, seconds: dict[str, float]) -> Traffic:
    return Traffic(pool, image, ("tiny", *ADAPTERS, ATTACHED), Path(os.environ[REPORT]), seconds)


@pytest.fixture
def own_node(cluster: Cluster) -> None:
    if not cluster.has_own_node():
        pytest.skip("kills processes of the node, which is not ours")


def _volume(name: str, path: Path) -> dict[str, Any]:
    on_node = {"key": "kubernetes.io/hostname", "operator": "In", "values": [NODE]}
    spec = {
        "capacity": {"storage": "1Gi"},
        "accessModes": ["ReadWriteOnce"],
        "claimRef": {"namespace": name, "name": "shelf"},
        "local": {"path": str(path)},
        "nodeAffinity": {"required": {"nodeSelectorTerms": [{"matchExpressions": [on_node]}]}},
    }
    return {"apiVersion": "v1", "kind": "PersistentVolume", "metadata": {"name": name}, "spec": spec}


def _filler(image: str) -> dict[str, Any]:
    container = {
        "name": "filler",
        "image": image,
        "command": ["sleep", "infinity"],
        "securityContext": {"runAsUser": 0},
        "volumeMounts": [{"name": "shelf", "mountPath": "/shelf"}],
    }
    volume = {"name": "shelf", "persistentVolumeClaim": {"claimName": "shelf"}}
    spec = {"containers": [container], "volumes": [volume], "terminationGracePeriodSeconds": 1}
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "filler"}, "spec": spec}
