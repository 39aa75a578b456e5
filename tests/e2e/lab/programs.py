"""What the node is made of: Debian's packages, and programs that are built from Go modules and kept in the cache."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
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
    "debootstrap": "debootstrap",
    "gcc": "gcc",
    "ip": "iproute2",
    "iptables": "iptables",
    "nm": "binutils",
    "readelf": "binutils",
    "runc": "runc",
    "/usr/lib/cni/ptp": "containernetworking-plugins",
}
"""Program → the package of Debian that brings it. debootstrap, gcc and binutils make what no registry gives."""

_UNASKED = {"DEBIAN_FRONTEND": "noninteractive"}
DISK_BYTES = 15 << 30

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
    """Return why no node can run here, whatever is installed; None where one can."""
    if os.geteuid() != 0:
        return "a node needs root"
    if not os.access("/sys/fs/cgroup/memory", os.W_OK):
        return "the node of these tests needs cgroups of version 1 that it may write to"
    cache = cache_directory()
    if shutil.disk_usage(next(each for each in (cache, *cache.parents) if each.exists())).free < DISK_BYTES:
        return f"images and node need {DISK_BYTES >> 30} GiB of disk below {cache}"
    return None


def ensure_packages(progress: Progress) -> None:
    """Install what is not there of Debian's packages.

    Raises:
        LocalClusterError: it can't be installed; the message names all that is missing.
    """
    absent = sorted({package for program, package in _PACKAGES.items() if shutil.which(program) is None})
    if not absent:
        return
    install = ["apt-get", "install", "--yes", "--quiet", "--no-install-recommends", *absent]
    with progress.step(f"installing {', '.join(absent)}"):
        for command in (["apt-get", "update", "--quiet"], install):
            try:
                subprocess.run(command, check=True, capture_output=True, text=True, env=os.environ | _UNASKED)
            except (OSError, subprocess.CalledProcessError) as error:
                why = getattr(error, "stderr", "") or str(error)
                raise LocalClusterError(
                    f"a node needs {', '.join(absent)}: {why[-1000:]}", hint=" ".join(install)
                ) from error


def ensure_programs(progress: Progress) -> Binaries:
    """Install Debian's packages, and build the programs that are none, where need be.

    Raises:
        LocalClusterError: a build failed, or something is missing on this machine.
    """
    if (why := missing()) is not None:
        raise LocalClusterError(why, hint="or give a cluster: make e2e KUBECONFIG=FILE")
    ensure_packages(progress)
    cache = cache_directory() / "binaries"
    groups = (ETCD, KUBERNETES, _NODE, _OWN)
    return Binaries({k: v for g in groups for k, v in ensure_group(g, cache, build_from_source, progress).items()})
