"""The CustomResourceDefinition on an API server."""

from __future__ import annotations

from pathlib import Path

from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.resource.crd import CRD_FILE

from tests.support.waiting import wait_until

ROOT = Path(__file__).parents[2]
NAME = "crd/adapterdeployments.graft.dev"


def install_definition(cluster: LocalCluster) -> None:
    """Apply the definition and wait until it is served; one that was applied just now has no conditions to wait for."""
    cluster.kubectl("apply", "--server-side", "--force-conflicts", "-f", str(ROOT / CRD_FILE))
    wait = ("wait", "--for=condition=Established", NAME, "--timeout=30s")
    wait_until(lambda: cluster.kubectl(*wait), "the definition", retried=(LocalClusterError,))
