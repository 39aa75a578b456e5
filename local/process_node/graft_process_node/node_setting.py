"""What one process node is told when it starts."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Network
from pathlib import Path

_PODS = 500
_CPU_SHARE = 10


def _machine_resources(state: Path) -> Mapping[str, str]:
    """What the node offers.

    Ten CPUs for each core: requests are not enforced, the processes share the cores, and a small machine should still
    take a handful of pods that ask for a CPU each.
    """
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return {
        "cpu": str(_CPU_SHARE * (os.cpu_count() or 1)),
        "memory": f"{memory // 1024}Ki",
        "ephemeral-storage": str(shutil.disk_usage(state).total),
        "pods": str(_PODS),
    }


@dataclass(frozen=True)
class NodeSetting:
    """One node.

    Args:
        name: of the Node object.
        state: holds pods/UID and claims/NAMESPACE/NAME.
        address: the node's own loopback address, where it serves its kubelet API.
        port: of that API; 0 takes a free one.
        pod_network: where pods' addresses come from.
    """

    name: str
    state: Path
    address: str = "127.0.0.1"
    port: int = 0
    pod_network: IPv4Network = field(default_factory=lambda: IPv4Network("127.100.0.0/16"))

    @property
    def capacity(self) -> Mapping[str, str]:
        """The node's resources as the API writes them; all of it is allocatable. `state` must exist."""
        return _machine_resources(self.state)

    @property
    def pods(self) -> Path:
        """A directory for each pod, by its uid."""
        return self.state / "pods"

    @property
    def marker(self) -> str:
        """What the environment of every process of this node's pods begins its marker with."""
        return f"{self.state.absolute()}:"
