"""A loopback address for each pod."""

from __future__ import annotations

from ipaddress import IPv4Address, IPv4Network

_RESERVED = 256
"""The first addresses of the network are for the node and the control plane."""


class NoAddressLeftError(Exception):
    """Every address of the pod network is in use."""


class PodAddresses:
    """Hands out addresses in turn, so that one is not used again soon after its pod is gone.

    Args:
        network: where they come from, less its first 256 and its last one.
    """

    def __init__(self, network: IPv4Network) -> None:
        self._first = int(network.network_address) + _RESERVED
        self._count = network.num_addresses - _RESERVED - 1
        if self._count < 1:
            raise ValueError(f"{network} is too small for a pod network; it takes a /23 or a larger one")
        self._owners: dict[int, str] = {}
        self._next = 0

    def take(self, uid: str, wanted: str | None = None) -> str:
        """An address for the pod `uid`: the one it has, the one it `wanted` if that is free, or the next.

        Raises:
            NoAddressLeftError: all are in use.
        """
        held = next((offset for offset, owner in self._owners.items() if owner == uid), None)
        if held is None:
            held = self._offset_of(wanted) if wanted else None
        if held is None:
            held = self._next_free()
        self._owners[held] = uid
        return str(IPv4Address(self._first + held))

    def release(self, uid: str) -> None:
        """The pod is gone."""
        self._owners = {offset: owner for offset, owner in self._owners.items() if owner != uid}

    def _offset_of(self, address: str) -> int | None:
        offset = int(IPv4Address(address)) - self._first
        if not 0 <= offset < self._count or offset in self._owners:
            return None
        self._next = max(self._next, offset + 1) % self._count
        return offset

    def _next_free(self) -> int:
        for step in range(self._count):
            offset = (self._next + step) % self._count
            if offset not in self._owners:
                self._next = (offset + 1) % self._count
                return offset
        raise NoAddressLeftError(f"all {self._count} addresses for pods are in use")
