"""Which loopback addresses a local cluster uses, so that several run beside each other on one machine.

The addresses below 127.0.0.0/8 are cut into slots. A slot is one /16 for Services and one for the node, its pods and
the control plane. Who runs a cluster in a slot holds an abstract Unix socket of that name: such a name is seen by
exactly the processes that share the loopback addresses, and is free again when its holder ends, however it ends.
"""

from __future__ import annotations

import json
import os
import socket
import zlib
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network
from pathlib import Path

from graft_local.errors import LocalClusterError

SLOTS = 88
_FIRST = 72  # 127.72.0.0/16; the low ones are in use on many machines
_FILE = "network.json"

ETCD_PORT = 22379
ETCD_PEER_PORT = 22380
API_SERVER_PORT = 26443
NODE_PORT = 20250


@dataclass(frozen=True)
class ClusterNetwork:
    """The addresses of one local cluster."""

    slot: int

    @property
    def service_range(self) -> IPv4Network:
        """ClusterIPs come from here."""
        return IPv4Network(f"127.{_FIRST + 2 * self.slot}.0.0/16")

    @property
    def pod_network(self) -> IPv4Network:
        """Pods' addresses come from here, but its first 256 are for the node and the control plane."""
        return IPv4Network(f"127.{_FIRST + 2 * self.slot + 1}.0.0/16")

    @property
    def node_address(self) -> IPv4Address:
        """The node agent serves its kubelet API here, on `NODE_PORT`."""
        return self.pod_network[1]

    @property
    def control_plane_address(self) -> IPv4Address:
        """etcd and the API server listen here."""
        return self.pod_network[2]

    @property
    def api_server_url(self) -> str:
        return f"https://{self.control_plane_address}:{API_SERVER_PORT}"

    @property
    def etcd_url(self) -> str:
        return f"http://{self.control_plane_address}:{ETCD_PORT}"

    @classmethod
    def read(cls, state: Path) -> ClusterNetwork:
        """The network of the cluster in the directory `state`.

        Raises:
            LocalClusterError: no cluster was ever started there.
        """
        try:
            return cls(slot=int(json.loads((state / _FILE).read_text())["slot"]))
        except FileNotFoundError:
            raise LocalClusterError(
                f"`{state}` holds no local cluster", hint="start one: graft-local up --state DIRECTORY"
            ) from None


@dataclass(frozen=True)
class Claim:
    """A slot that is ours until `release`, or until this process and its forks end."""

    network: ClusterNetwork
    _socket: socket.socket

    def release(self) -> None:
        self._socket.close()


def claim_network(state: Path) -> Claim:
    """The slot that the cluster in `state` used before, else a free one, recorded there.

    Raises:
        LocalClusterError: its slot, or every slot, is in use by another cluster.
    """
    recorded = state / _FILE
    if recorded.exists():
        network = ClusterNetwork.read(state)
        held = _hold(network.slot)
        if held is None:
            raise LocalClusterError(
                f"another local cluster uses the addresses of the one in `{state}`: {network.service_range} and "
                f"{network.pod_network}",
                hint="stop the other one, or delete this directory to begin anew",
            )
        return Claim(network, held)
    # Begin at a number of its own, so that a cluster which is down seldom finds its slot taken.
    first = zlib.crc32(os.fsencode(state.absolute())) % SLOTS
    for offset in range(SLOTS):
        network = ClusterNetwork(slot=(first + offset) % SLOTS)
        held = _hold(network.slot)
        if held is not None:
            temporary = recorded.with_suffix(".tmp")
            temporary.write_text(json.dumps({"slot": network.slot}) + "\n")
            temporary.replace(recorded)
            return Claim(network, held)
    raise LocalClusterError(
        f"all {SLOTS} address ranges for local clusters are in use", hint="stop one: graft-local down"
    )


def _hold(slot: int) -> socket.socket | None:
    holder = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        holder.bind(f"\0graft-local-network-{slot}")
    except OSError:
        holder.close()
        return None
    return holder
