"""For the tests that need Kubernetes: one control plane for the whole run, a namespace for each test."""

from __future__ import annotations

import itertools
import os
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:  # imported late: most tests need none of it
    from graft_local.cluster import LocalCluster

pytest.register_assert_rewrite("tests.support")
pytest_plugins = ["tests.support.adapters", "tests.support.bases", "tests.support.engine", "tests.support.hub"]

# Set before torch is imported, or threads of one worker would wait for those of another.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")

_numbers = itertools.count(1)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Have the control plane's programs before the first test: building them takes longer than a test may."""
    if session.config.option.collectonly or not any(map(_needs_a_cluster, session.items)):
        return
    from graft_local.binaries import ensure_binaries
    from graft_local.progress import Progress

    capture = session.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        ensure_binaries(Progress())


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Tell the process that started this one how many random cases there were."""
    if (told := getattr(session.config, "workeroutput", None)) is not None:
        from tests.support import cases

        told["cases"] = dict(cases.TRIED)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Count the random cases of a process that has ended."""
    from tests.support import cases

    cases.TRIED.update(getattr(node, "workeroutput", {}).get("cases", {}))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Say how many random cases there were."""
    from tests.support import cases

    for line in cases.summary():
        terminalreporter.write_line(line)


def _needs_a_cluster(item: pytest.Item) -> bool:
    return "local_cluster" in getattr(item, "fixturenames", ()) or item.get_closest_marker("cluster") is not None


@pytest.fixture(scope="session")
def local_cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """A whole cluster: control plane, node and services. Use `namespace`, and leave everything else as it is."""
    from graft_local.cluster import LocalCluster

    with LocalCluster.start(tmp_path_factory.mktemp("cluster")) as cluster:
        yield cluster


@pytest.fixture
def namespace(local_cluster: LocalCluster) -> Iterator[str]:
    """A new namespace, deleted afterwards in the background."""
    name = f"test-{next(_numbers)}"
    local_cluster.kubectl("create", "namespace", name)
    yield name
    local_cluster.kubectl("delete", "namespace", name, "--wait=false")
