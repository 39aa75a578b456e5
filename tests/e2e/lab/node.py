"""A Kubernetes of one node, in namespaces of its own: this process is their process 1, and with it everything ends.

The only devices of its network are lo and one that leads nowhere, so nothing of it leaves the machine. What is mounted
is seen by nobody outside. It runs a command as soon as the node is Ready, and ends with its status.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path
from typing import Any

from graft_local.binaries import Binaries
from graft_local.certificates import Certificates, ensure_certificates, kubeconfig_of
from graft_local.control_plane import Part, parts
from graft_local.network import ClusterNetwork

from tests.e2e.lab.images import PAUSE

NODE = "e2e"
CONTAINERD = Path("/run/containerd/containerd.sock")
CGROUP = "graft-e2e"
CGROUPS = Path("/sys/fs/cgroup")

_LOOPBACK_ONLY = ("--controllers=", "--endpoint-reconciler-type=")
"""Flags of the local cluster whose nodes have loopback addresses."""


class NodeNetwork(ClusterNetwork):
    """Addresses that pods can reach; the namespace has them for itself."""

    @property
    def service_range(self) -> IPv4Network:
        return IPv4Network("10.96.0.0/16")

    @property
    def pod_network(self) -> IPv4Network:
        return IPv4Network("10.244.0.0/16")

    @property
    def first_pod(self) -> IPv4Address:
        """Those below are the node's and the control plane's."""
        return self.pod_network[256]


def run(state: Path, binaries: Binaries, archives: Sequence[Path], command: Sequence[str]) -> int:
    """Start everything, run the command, and return its exit status. Parts that end are started again."""
    network = NodeNetwork(slot=0)
    _set_up_namespaces(state, network)
    certificates = ensure_certificates(state, network)
    kubeconfig = kubeconfig_of(state, "admin")

    def node_is_ready() -> bool:
        told = _output(binaries["kubectl"], "--kubeconfig", kubeconfig, "get", "node", NODE, "-o", "json")
        conditions = json.loads(told)["status"]["conditions"] if told else ()
        return any(one["type"] == "Ready" and one["status"] == "True" for one in conditions)

    running: dict[int, Part] = {}
    for part in (
        *_control_plane(state, network, certificates, binaries),
        *_agents(state, network, binaries),
    ):
        _wait(part.needs, f"{part.name} may start")
        running[_start(part, state)] = part
    for archive in archives:
        subprocess.run(
            ["ctr", "--namespace", "k8s.io", "images", "import", str(archive)], check=True, stdout=subprocess.DEVNULL
        )
    _wait(node_is_ready, "the node is Ready")
    environment = os.environ | {"KUBECONFIG": str(kubeconfig), "GRAFT_E2E_ARCHIVES": str(state)}
    ours = subprocess.Popen(command, env=environment).pid
    while True:
        ended, status = os.wait()  # orphans of all kinds are ours as well
        if ended == ours:
            return os.waitstatus_to_exitcode(status)
        if (again := running.pop(ended, None)) is not None:
            time.sleep(0.5)
            running[_start(again, state)] = again


def _set_up_namespaces(state: Path, network: NodeNetwork) -> None:
    for directory in ("log", "logs", "run", "cni", "kubelet"):
        (state / directory).mkdir(parents=True, exist_ok=True)
    Path("/var/lib/cni").mkdir(exist_ok=True)
    resolv = state / "resolv.conf"
    resolv.write_text(f"nameserver {network.node_address}\nsearch svc.cluster.local cluster.local\noptions ndots:5\n")
    for line in (
        "mount --make-rshared /",
        "mount -t tmpfs tmpfs /run",
        f"mount --bind {state / 'log'} /var/log",
        "mount -t tmpfs tmpfs /var/lib/cni",
        f"mount --bind {resolv} {Path('/etc/resolv.conf').resolve()}",
        f"hostname {NODE}",
        "ip link set lo up",
        "ip link add node type veth peer name nowhere",
        "ip link set node up",
        "ip link set nowhere up",
        f"ip address add {network.node_address}/32 dev node",
        f"ip address add {network.control_plane_address}/32 dev node",
        "ip route add default dev node",  # ClusterIPs are looked up before they are rewritten
    ):
        subprocess.run(line.split(), check=True)
    for name in ("net/ipv4/ip_forward", "net/bridge/bridge-nf-call-iptables"):
        setting = Path("/proc/sys") / name
        if setting.exists():
            setting.write_text("1")
    for hierarchy in CGROUPS.iterdir():
        if hierarchy.is_dir() and not hierarchy.is_symlink():
            (hierarchy / CGROUP).mkdir(exist_ok=True)
    # Against each process outside, all pods together weigh as much as the processors that they may have.
    (CGROUPS / "cpu" / CGROUP / "cpu.shares").write_text(str(1024 * (os.cpu_count() or 1) * 4))
    for name in ("cpuset.cpus", "cpuset.mems"):
        (CGROUPS / "cpuset" / CGROUP / name).write_text((CGROUPS / "cpuset" / name).read_text())


def _control_plane(state: Path, network: NodeNetwork, certificates: Certificates, binaries: Binaries) -> list[Part]:
    """The local cluster's, but with real endpoints."""
    found = parts(state, network, certificates, binaries, node=False, services=False)
    return [
        Part(part.name, [flag for flag in part.command if not flag.startswith(_LOOPBACK_ONLY)], part.needs)
        for part in found
    ]


def _agents(state: Path, network: NodeNetwork, binaries: Binaries) -> list[Part]:
    def listens() -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            return probe.connect_ex(str(CONTAINERD)) == 0

    def api_server_ready() -> bool:
        return bool(
            _output(binaries["kubectl"], "--kubeconfig", kubeconfig_of(state, "admin"), "get", "--raw", "/readyz")
        )

    (state / "containerd.toml").write_text(_containerd_config(state))
    configs: dict[str, Any] = {
        "cni/10-pods.conflist": _cni_config(network),
        "kubelet.json": _kubelet_config(network),
        "kube-proxy.json": _proxy_config(state, network),
    }
    for name, config in configs.items():
        (state / name).write_text(json.dumps(config))
    (state / "no-resolv.conf").touch()
    (state / "Corefile").write_text(
        f".:53 {{\n bind {network.node_address}\n errors\n"
        f" kubernetes cluster.local {{\n  kubeconfig {kubeconfig_of(state, 'admin')}\n  ttl 5\n }}\n}}\n"
    )
    kubelet = [
        str(binaries["kubelet"]),
        f"--config={state / 'kubelet.json'}",
        f"--kubeconfig={kubeconfig_of(state, 'node')}",
        f"--root-dir={state / 'kubelet'}",
        f"--hostname-override={NODE}",
        f"--node-ip={network.node_address}",
    ]
    return [
        Part("containerd", ["containerd", "--config", str(state / "containerd.toml")], api_server_ready),
        Part("kubelet", kubelet, listens),
        Part("kube-proxy", [str(binaries["kube-proxy"]), f"--config={state / 'kube-proxy.json'}"]),
        Part("coredns", [str(binaries["coredns"]), "-conf", str(state / "Corefile")]),
    ]


def _containerd_config(state: Path) -> str:
    return f"""\
version = 2
root = "{state}/containerd"
state = "/run/containerd"
[plugins."io.containerd.internal.v1.opt"]
  path = "{state}/containerd-opt"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{state}/cni"
"""


def _cni_config(network: NodeNetwork) -> dict[str, Any]:
    pods = {"subnet": str(network.pod_network), "rangeStart": str(network.first_pod)}
    addresses = {"type": "host-local", "dataDir": "/run/cni", "ranges": [[pods]], "routes": [{"dst": "0.0.0.0/0"}]}
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [{"type": "ptp", "ipMasq": False, "ipam": addresses}]}


def _kubelet_config(network: NodeNetwork) -> dict[str, Any]:
    return {
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": True}, "webhook": {"enabled": False}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs",
        "cgroupRoot": f"/{CGROUP}",
        "failCgroupV1": False,
        "failSwapOn": False,
        "clusterDNS": [str(network.node_address)],
        "clusterDomain": "cluster.local",
        "resolvConf": "",
        "containerRuntimeEndpoint": f"unix://{CONTAINERD}",
        "serializeImagePulls": False,
        "nodeStatusUpdateFrequency": "5s",
        # The machine's disk is none of its business: images must not go, nor pods.
        "imageGCHighThresholdPercent": 100,
        "evictionHard": {"memory.available": "100Mi", "nodefs.available": "1%", "imagefs.available": "1%"},
    }


def _proxy_config(state: Path, network: NodeNetwork) -> dict[str, Any]:
    return {
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": str(kubeconfig_of(state, "services"))},
        "mode": "iptables",
        "clusterCIDR": str(network.pod_network),
        "hostnameOverride": NODE,
        # The machine's table of connections can't be set from here.
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    }


def _start(part: Part, state: Path) -> int:
    with (state / "logs" / f"{part.name}.log").open("ab") as log:
        process = subprocess.Popen(
            part.command, cwd=state, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
        )
    (state / "run" / f"{part.name}.pid").write_text(f"{process.pid}\n")
    return process.pid


def _wait(holds: Callable[[], bool], what: str, seconds: float = 180.0) -> None:
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            sys.exit(f"after {seconds:.0f} s still not: {what}")
        time.sleep(0.1)


def _output(*command: str | Path) -> str:
    done = subprocess.run(command, check=False, capture_output=True, text=True)
    return done.stdout if done.returncode == 0 else ""


def forget(state: Path) -> None:
    """Remove what a run left: its directory, and its cgroups, which outlive the namespaces."""
    _wait(_cgroups_are_gone, "the node's cgroups are empty")
    shutil.rmtree(state, ignore_errors=True)


def _cgroups_are_gone() -> bool:
    groups = [hierarchy / CGROUP for hierarchy in CGROUPS.iterdir() if (hierarchy / CGROUP).is_dir()]
    try:
        for group in groups:
            for part in (*sorted(group.rglob("*/"), reverse=True), group):
                part.rmdir()
    except OSError:  # what was killed has not quite ended
        return False
    return True
