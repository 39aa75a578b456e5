"""Which addresses a local cluster gets."""

from __future__ import annotations

from ipaddress import IPv4Network
from itertools import combinations
from pathlib import Path

import pytest
from graft_local.errors import LocalClusterError
from graft_local.network import SLOTS, ClusterNetwork, claim_network


def test_no_two_slots_share_an_address_and_all_are_loopback() -> None:
    networks = [ClusterNetwork(slot) for slot in range(SLOTS)]
    ranges = [part for network in networks for part in (network.service_range, network.pod_network)]
    assert all(part.subnet_of(IPv4Network("127.0.0.0/8")) for part in ranges)
    assert not any(one.overlaps(other) for one, other in combinations(ranges, 2))
    assert not any(part.overlaps(IPv4Network("127.0.0.0/12")) for part in ranges)


def test_node_and_control_plane_have_an_address_of_their_own_outside_the_pods() -> None:
    network = ClusterNetwork(0)
    addresses = {network.node_address, network.control_plane_address}
    assert len(addresses) == 2
    assert all(address in IPv4Network(f"{network.pod_network.network_address}/24") for address in addresses)


def test_a_claimed_slot_is_recorded_and_taken_again(tmp_path: Path) -> None:
    first = claim_network(tmp_path)
    assert ClusterNetwork.read(tmp_path) == first.network
    first.release()
    again = claim_network(tmp_path)
    assert again.network == first.network
    again.release()


def test_a_slot_in_use_goes_to_nobody_else(tmp_path: Path) -> None:
    one, copy = tmp_path / "one", tmp_path / "copy"
    for directory in (one, copy):
        directory.mkdir()
    claim = claim_network(one)
    (copy / "network.json").write_text((one / "network.json").read_text())
    with pytest.raises(LocalClusterError, match="another local cluster uses the addresses"):
        claim_network(copy)
    (copy / "network.json").unlink()
    other = claim_network(copy)
    assert other.network != claim.network
    for held in (claim, other):
        held.release()


def test_a_directory_without_a_cluster_is_told(tmp_path: Path) -> None:
    with pytest.raises(LocalClusterError, match="holds no local cluster"):
        ClusterNetwork.read(tmp_path)
