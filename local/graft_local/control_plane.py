"""The parts of a local cluster and how each is started. Nothing here starts one."""

from __future__ import annotations

import contextlib
import socket
import ssl
import sys
import urllib.parse
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft_local.binaries import Binaries
from graft_local.certificates import Certificates, kubeconfig_of
from graft_local.http_client import FAULTS, request
from graft_local.network import API_SERVER_PORT, ETCD_PEER_PORT, ClusterNetwork

NODE_NAME = "local"

_CONTROLLERS_OFF = (
    # These refuse loopback addresses; the services part routes from Services and pods by itself.
    "endpoints-controller",
    "endpointslice-controller",
    "endpointslice-mirroring-controller",
    # No cloud, no networks to hand out, nothing to attach.
    "node-ipam-controller",
    "node-route-controller",
    "service-lb-controller",
    "cloud-node-lifecycle-controller",
    "persistentvolume-attach-detach-controller",
)
_CLIENT_RATE = ("--kube-api-qps=300", "--kube-api-burst=600")


def _always() -> bool:
    return True


@dataclass(frozen=True)
class Part:
    """One process of the cluster. `needs` tells when it may be started; it is asked before every start."""

    name: str
    command: Sequence[str]
    needs: Callable[[], bool] = _always
    stop_seconds: float = 5.0
    """How long it may take to end after SIGTERM."""


def parts(
    state: Path,
    network: ClusterNetwork,
    certificates: Certificates,
    binaries: Binaries,
    *,
    node: bool,
    services: bool,
) -> list[Part]:
    """All parts, in the order of starting. The list ends with the two of our own, where asked for."""

    def etcd_listens() -> bool:
        return listens(network.etcd_url)

    def api_server_ready() -> bool:
        with contextlib.suppress(*FAULTS):
            return ask_api_server("/readyz", network, certificates) is not None
        return False

    control_plane = [
        Part("etcd", [str(binaries["etcd"]), *_etcd_flags(state, network)]),
        Part(
            "kube-apiserver", [str(binaries["kube-apiserver"]), *_api_server_flags(network, certificates)], etcd_listens
        ),
        Part(
            "kube-controller-manager",
            [str(binaries["kube-controller-manager"]), *_controller_manager_flags(state, certificates)],
            api_server_ready,
        ),
        Part("kube-scheduler", [str(binaries["kube-scheduler"]), *_scheduler_flags(state)], api_server_ready),
    ]
    own = [sys.executable, "-P", "-m", "graft_local"]
    node_arguments = ["--kubeconfig", str(kubeconfig_of(state, "node")), "--state", str(state), "--name", NODE_NAME]
    node_part = Part("node", [*own, "node", *node_arguments], api_server_ready, stop_seconds=15.0)
    services_arguments = ["--kubeconfig", str(kubeconfig_of(state, "services"))]
    services_part = Part("services", [*own, "services", *services_arguments], api_server_ready)
    return [*control_plane, *([node_part] if node else []), *([services_part] if services else [])]


def listens(url: str) -> bool:
    """Whether a TCP connection to the URL's host and port is taken."""
    address = urllib.parse.urlsplit(url)
    try:
        with socket.create_connection((address.hostname, address.port), timeout=1.0):
            return True
    except OSError:
        return False


def ask_api_server(path: str, network: ClusterNetwork, certificates: Certificates) -> bytes | None:
    """The content of what the API server answers to a GET with the status 200; None for another status.

    Raises:
        OSError, http.client.HTTPException: it does not answer.
    """
    context = ssl.create_default_context(cafile=str(certificates.authority))
    context.load_cert_chain(certificates.kubelet_client.certificate, certificates.kubelet_client.key)
    status, content = request(f"{network.api_server_url}{path}", context=context)
    return content if status == 200 else None


def _etcd_flags(state: Path, network: ClusterNetwork) -> list[str]:
    peers = f"http://{network.control_plane_address}:{ETCD_PEER_PORT}"
    return [
        "--name=local",
        f"--data-dir={state / 'etcd'}",
        f"--listen-client-urls={network.etcd_url}",
        f"--advertise-client-urls={network.etcd_url}",
        f"--listen-peer-urls={peers}",
        f"--initial-advertise-peer-urls={peers}",
        f"--initial-cluster=local={peers}",
        "--unsafe-no-fsync",  # survives kill -9; a machine that loses power may lose this cluster
        "--auto-compaction-retention=5m",
        "--log-level=warn",
    ]


def _api_server_flags(network: ClusterNetwork, certificates: Certificates) -> list[str]:
    address = network.control_plane_address
    return [
        f"--etcd-servers={network.etcd_url}",
        f"--bind-address={address}",
        f"--advertise-address={address}",
        f"--secure-port={API_SERVER_PORT}",
        "--endpoint-reconciler-type=none",  # it would refuse a loopback address
        f"--service-cluster-ip-range={network.service_range}",
        "--authorization-mode=RBAC",
        f"--client-ca-file={certificates.authority}",
        f"--tls-cert-file={certificates.api_server.certificate}",
        f"--tls-private-key-file={certificates.api_server.key}",
        f"--kubelet-client-certificate={certificates.kubelet_client.certificate}",
        f"--kubelet-client-key={certificates.kubelet_client.key}",
        "--kubelet-preferred-address-types=InternalIP",
        "--service-account-issuer=https://kubernetes.default.svc",
        f"--service-account-key-file={certificates.service_account.certificate}",
        f"--service-account-signing-key-file={certificates.service_account.key}",
        "--allow-privileged=true",
        "--feature-gates=ImageVolume=true",  # as from Kubernetes 1.35 on
        "--profiling=false",
    ]


def _controller_manager_flags(state: Path, certificates: Certificates) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig_of(state, 'kube-controller-manager')}",
        "--leader-elect=false",
        "--use-service-account-credentials=true",
        f"--service-account-private-key-file={certificates.service_account.key}",
        f"--root-ca-file={certificates.authority}",
        f"--controllers=*,{','.join(f'-{name}' for name in _CONTROLLERS_OFF)}",
        f"--flex-volume-plugin-dir={state / 'run' / 'volume-plugins'}",
        "--horizontal-pod-autoscaler-sync-period=5s",  # a machine of one developer has the time
        "--secure-port=0",
        "--profiling=false",
        *_CLIENT_RATE,
    ]


def _scheduler_flags(state: Path) -> list[str]:
    return [
        f"--kubeconfig={kubeconfig_of(state, 'kube-scheduler')}",
        "--leader-elect=false",
        "--secure-port=0",
        "--profiling=false",
        *_CLIENT_RATE,
    ]
