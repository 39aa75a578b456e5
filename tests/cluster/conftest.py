"""One control plane for the whole run, a namespace for each test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from graft_local.binaries import ensure_binaries
from graft_local.cluster import LocalCluster
from graft_local.progress import Progress

_numbers = itertools.count(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the control plane's programs before the first test: building them takes longer than a test may."""
    if session.config.option.collectonly or not session.items:
        return
    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        ensure_binaries(Progress())


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A whole cluster: control plane, node and services. Use `namespace`, and leave everything else as it is."""
    with LocalCluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def namespace(local_cluster: LocalCluster) -> Iterator[str]:
    """A new namespace, deleted afterwards in the background."""
    name = f"test-{next(_numbers)}"
    local_cluster.kubectl("create", "namespace", name)
    yield name
    local_cluster.kubectl("delete", "namespace", name, "--wait=false")
