"""The CustomResourceDefinitions on an API server."""

from __future__ import annotations

from pathlib import Path

from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.resource.crd import CRD_FOLDER, DEFINITIONS

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
NAMES = tuple(f"crd/{definition.crd_name}" for definition in DEFINITIONS)


def install_definition(cluster: LocalCluster) -> None:
    """Apply the definitions and wait until they are served; what was applied just now has no conditions to wait for."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / CRD_FOLDER))
    wait = ("wait", "--for=condition=Established", *NAMES, "--timeout=30s")
    wait_until(lambda: cluster.kubectl(*wait), "the definitions", retried=(LocalClusterError,))
