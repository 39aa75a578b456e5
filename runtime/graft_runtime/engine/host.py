"""Adapters that have left the device: compiled and tried, in host memory, so that the next mount is one copy."""

from __future__ import annotations

from collections.abc import Mapping

import torch

from graft_runtime.adapters.deltas import CompiledAdapter

HOST = torch.device("cpu")


class HostMemory:
    """Packs by digest, up to so many bytes; those that came first go first.

    An adapter leaves the device when it is the least recently used there, so the first to come is the least recently
    used here. Where the device is the host, nothing is copied: a pack is in one of the two or the other.

    Args:
        room: bytes.
    """

    def __init__(self, room: int) -> None:
        self.room = room
        self._packs: dict[str, CompiledAdapter] = {}
        self.bytes = 0

    @property
    def adapters(self) -> Mapping[str, CompiledAdapter]:
        """Return the adapters by digest, the first to come first."""
        return self._packs

    def put(self, digest: str, adapter: CompiledAdapter) -> list[str]:
        """Keep an adapter.

        Returns:
            The digests that had to go for the adapter: its own alone where the adapter could never fit.
        """
        if adapter.bytes > self.room:
            return [digest]
        gone = []
        while self.bytes + adapter.bytes > self.room:
            gone.append(next(iter(self._packs)))
            self.take(gone[-1])
        self._packs[digest] = adapter.to(HOST)
        self.bytes += adapter.bytes
        return gone

    def take(self, digest: str) -> CompiledAdapter | None:
        """Take out the adapter and return it; None when there is none."""
        adapter = self._packs.pop(digest, None)
        if adapter is not None:
            self.bytes -= adapter.bytes
        return adapter
