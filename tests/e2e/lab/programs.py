"""What the node is made of: Debian's packages, and programs that are built from Go modules and kept in the cache."""

from __future__ import annotations

import dataclasses
import os
import shutil
from pathlib import Path

from graft_local.binaries import ETCD, KUBERNETES, Binaries, Group, build_from_source, ensure_group
from graft_local.cache import cache_directory
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress

_PACKAGES = {
    "buildah": "buildah",
    "conntrack": "conntrack",
    "containerd": "containerd",
    "ctr": "containerd",
    "ip": "iproute2",
    "iptables": "iptables",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
"""Program → the package of Debian that brings it."""

_NODE = dataclasses.replace(
    KUBERNETES,
    name="kubernetes-node",
    packages={name: f"k8s.io/kubernetes/cmd/{name}" for name in ("kubelet", "kube-proxy")},
)
_OWN = Group(
    name="e2e",
    version="1.14.7",  # CoreDNS's
    module=Path(__file__).parent / "go",
    packages={"coredns": "./coredns", "pause": "./pause"},
)


def missing() -> str | None:
    """Why no node can run here; None where one can."""
    if os.geteuid() != 0:
        return "a node needs root"
    if not Path("/sys/fs/cgroup/memory").is_dir():
        return "the node of these tests needs cgroups of version 1"
    absent = sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})
    return f"a node needs `apt-get install --no-install-recommends {' '.join(absent)}`" if absent else None


def ensure_programs(progress: Progress) -> Binaries:
    """All programs that are no packages of Debian, built where need be.

    Raises:
        LocalClusterError: a build failed, or something is missing on this machine.
    """
    if (why := missing()) is not None:
        raise LocalClusterError(why, hint="or give a cluster: make e2e KUBECONFIG=FILE")
    cache = cache_directory() / "binaries"
    groups = (ETCD, KUBERNETES, _NODE, _OWN)
    return Binaries({k: v for g in groups for k, v in ensure_group(g, cache, build_from_source, progress).items()})
