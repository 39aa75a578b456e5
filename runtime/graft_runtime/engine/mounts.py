"""Which adapters are mounted, and which requests hold them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.engine.host import HostMemory
from graft_runtime.engine.ledger import adapter_too_large
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Dropped, Mounted, Tier, Unmounted


@dataclass
class _Mount:
    adapter: CompiledAdapter | None = None
    """None while it is being loaded."""
    holds: int = 0
    leaving: bool = False
    keep: bool = False


class Mounts:
    """The adapters in the memory of the device, by digest. A request holds its adapters until it ends.

    Args:
        limit: how many.
        room: bytes for all of them.
    """

    def __init__(self, limit: int, room: int | None = None) -> None:
        self._limit, self.room = limit, room
        self._mounts: dict[str, _Mount] = {}
        self.device = torch.device("cpu")
        self.host = HostMemory(0)

    @property
    def digests(self) -> frozenset[str]:
        """Return the digests of the adapters that are mounted, or on their way."""
        return frozenset(self._mounts)

    def open(self, room: int, host_room: int, device: torch.device) -> None:
        """Mount in so many bytes of `device`, and keep in so many bytes of host memory what leaves it, from now on."""
        self.room, self.host, self.device = room, HostMemory(host_room), device

    def check_room(self, adapter: CompiledAdapter, name: str) -> None:
        """Check that there are bytes for one more adapter. Raises GraftError: NoCapacity."""
        held = sum(mount.adapter.bytes for mount in self._mounts.values() if mount.adapter is not None)
        if self.room is not None and held + adapter.bytes > self.room:
            raise adapter_too_large(name, adapter.bytes, self.room - held)

    def begin(self, digest: str, name: str = "") -> Mounted | None:
        """Mount an adapter that is on the device or in host memory; make room for any other.

        Returns:
            None when it has to be loaded.

        Raises:
            GraftError: NoCapacity.
            torch.OutOfMemoryError: the adapter stays in host memory then.
        """
        mount = self._mounts.get(digest)
        if mount is not None:
            mount.leaving = False
            return _mounted(digest, mount.adapter, "device") if mount.adapter is not None else None
        if len(self._mounts) >= self._limit:
            raise GraftError(
                ErrorCode.NO_CAPACITY,
                f"{self._limit} adapters are mounted, the most that spec.engine.maxMountedAdapters allows",
                hint="unmount one, or raise spec.engine.maxMountedAdapters",
            )
        kept = self.host.take(digest)
        if kept is None:
            self._mounts[digest] = _Mount()
            return None
        try:
            self.check_room(kept, name)
            adapter = kept.to(self.device)
        except Exception:
            self.host.put(digest, kept)
            raise
        self._mounts[digest] = _Mount(adapter)
        return _mounted(digest, adapter, "host")

    def loading(self, digest: str) -> bool:
        """Tell whether this adapter is on its way."""
        return digest in self._mounts and self._mounts[digest].adapter is None

    def publish(self, digest: str, adapter: CompiledAdapter) -> list[Mounted | Unmounted | Dropped]:
        """Let requests name the adapter from now on, unless it was unmounted while it was loaded."""
        mount = self._mounts[digest]
        mount.adapter = adapter
        return [*self._leave(digest, mount)] or [_mounted(digest, adapter, "disk")]

    def abandon(self, digest: str) -> None:
        """Forget an adapter whose loading failed."""
        self._mounts.pop(digest, None)

    def hold(self, digest: str) -> CompiledAdapter:
        """Hold an adapter for one request, until the adapter is released. Raises GraftError: NotReady."""
        mount = self._mounts.get(digest)
        if mount is None or mount.adapter is None or mount.leaving:
            raise GraftError(ErrorCode.NOT_READY, f"adapter {digest} is not mounted", hint="try again")
        mount.holds += 1
        return mount.adapter

    def release(self, digest: str) -> list[Unmounted | Dropped]:
        """Release one request's hold, which may be what an unmounted adapter waited for."""
        mount = self._mounts[digest]
        mount.holds -= 1
        return self._leave(digest, mount)

    def unmount(self, digest: str, *, keep: bool) -> list[Unmounted | Dropped]:
        """Take no new request for the adapter, which goes now, or when nobody holds it any longer.

        Args:
            digest: of an adapter, mounted or not.
            keep: in host memory.
        """
        mount = self._mounts.get(digest)
        if mount is None:
            if not keep:
                self.host.take(digest)
            return [Unmounted(digest)]
        mount.leaving, mount.keep = True, keep
        return self._leave(digest, mount)

    def _leave(self, digest: str, mount: _Mount) -> list[Unmounted | Dropped]:
        if not mount.leaving or mount.adapter is None or mount.holds:
            return []
        del self._mounts[digest]
        if not mount.keep:
            return [Unmounted(digest)]
        gone = self.host.put(digest, mount.adapter)
        if gone == [digest]:
            return [Unmounted(digest, "disk")]
        kept = Unmounted(digest, "host")
        return [Dropped(gone), kept] if gone else [kept]


def _mounted(digest: str, adapter: CompiledAdapter, tier: Tier) -> Mounted:
    return Mounted(digest, adapter.facts, adapter.bytes, tier)
