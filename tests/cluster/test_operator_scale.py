"""Many pools on one operator, as `make bench` measures them, on fewer pools: what a restart costs the API server."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from graft_local.cluster import LocalCluster
from graft_operator.kinds import watched_kinds
from graft_operator.resource.crd import CRD_FOLDER

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
BENCH = ROOT / "bench" / "operator_scale.py"
POOLS = 30
CHILDREN = 6
ADAPTERS = 60
"""Attached to them in turn."""
WRITES = 3
"""Of a change of an Adapter: the adapter set, the statuses of the Adapter and of its pool."""
SECONDS = 10.0
"""What 500 pools may take from the start of the process until all are observed; generous for as few as these."""
MIB = 2**20


@pytest.fixture(scope="module")
def result(local_cluster: LocalCluster, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the benchmark says; it restarts the operator once all pools have settled."""
    local_cluster.kubectl("apply", "--server-side", "-f", str(ROOT / CRD_FOLDER))
    local_cluster.kubectl("wait", "--for=condition=Established", "crd", "--all", "--timeout=30s")
    local_cluster.kubectl("create", "namespace", "operator-scale")
    numbers = tmp_path_factory.mktemp("scale") / "numbers.json"
    done = subprocess.run(
        [
            *(sys.executable, str(BENCH), "--pools", str(POOLS), "--adapters", str(ADAPTERS)),
            *("--kubeconfig", str(local_cluster.kubeconfig), "--json", str(numbers)),
        ],
        check=False,
        capture_output=True,
        text=True,
        timeout=280,
    )
    local_cluster.kubectl("delete", "namespace", "operator-scale", "--wait=false")
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(numbers.read_text())
    return found


def test_a_restart_writes_nothing(result: dict[str, Any]) -> None:
    assert set(result["settled"]["requests"]) == {"GET"}
    assert result["changed"] == 0, "objects have another resourceVersion"


def test_a_restart_lists_each_kind_and_reads_no_pool_by_itself(result: dict[str, Any]) -> None:
    # The first load and one pruning after kopf's own lists; the signing key before each.
    lists = 2 * len(watched_kinds()) + 2
    # Kopf's lists of a loaded machine may come in two bursts.
    assert result["settled"]["requests"]["GET"] <= 2 * lists


def test_a_restart_takes_one_pass_a_pool(result: dict[str, Any]) -> None:
    assert result["settled"]["passes"] == POOLS


def test_new_pools_coalesce_their_events(result: dict[str, Any]) -> None:
    """Each has some twenty events of its own: its children, their controllers' words, the echoes of our writes."""
    assert result["created"]["requests"]["PATCH"] <= POOLS * (CHILDREN + 3)
    assert result["created"]["passes"] <= POOLS * 10


def test_a_change_of_an_adapter_costs_a_few_writes(result: dict[str, Any]) -> None:
    changes = len(result["change_seconds"])
    assert changes
    assert 0 < result["change_requests"]["PATCH"] <= WRITES * changes + WRITES
    assert result["change_requests"]["GET"] <= 1, "a look at the signing key may fall in between"


def test_a_restart_is_fast_and_small(result: dict[str, Any]) -> None:
    assert 0 < result["restart"]["seconds"] < SECONDS
    assert result["settled"]["peak_bytes"] < 256 * MIB
