"""Which adapters are mounted, and which requests hold them."""

from __future__ import annotations

from dataclasses import dataclass

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.errors import ErrorCode, GraftError


@dataclass
class _Mount:
    adapter: CompiledAdapter | None = None
    """None while it is being loaded."""
    holds: int = 0
    leaving: bool = False


class Mounts:
    """The adapters in the memory of the device, by digest. A request holds its adapters until it ends."""

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._mounts: dict[str, _Mount] = {}

    def begin(self, digest: str) -> CompiledAdapter | None:
        """Makes room for an adapter, or keeps the one that is there.

        Returns:
            The adapter when it is mounted already.

        Raises:
            GraftError: NoCapacity.
        """
        mount = self._mounts.get(digest)
        if mount is None:
            if len(self._mounts) >= self._limit:
                raise GraftError(
                    ErrorCode.NO_CAPACITY,
                    f"{self._limit} adapters are mounted, the most that spec.engine.maxMountedAdapters allows",
                    hint="unmount one, or raise spec.engine.maxMountedAdapters",
                )
            mount = self._mounts[digest] = _Mount()
        mount.leaving = False
        return mount.adapter

    def loading(self, digest: str) -> bool:
        """Whether this adapter is on its way."""
        return digest in self._mounts and self._mounts[digest].adapter is None

    def publish(self, digest: str, adapter: CompiledAdapter) -> bool:
        """Requests may name it from now on. False when it was unmounted while it was loaded."""
        mount = self._mounts[digest]
        mount.adapter = adapter
        return not self._leave(digest, mount)

    def abandon(self, digest: str) -> None:
        """Loading it failed."""
        self._mounts.pop(digest, None)

    def hold(self, digest: str) -> CompiledAdapter:
        """For one request, until it is released. Raises GraftError: NotReady."""
        mount = self._mounts.get(digest)
        if mount is None or mount.adapter is None or mount.leaving:
            raise GraftError(ErrorCode.NOT_READY, f"adapter {digest} is not mounted", hint="try again")
        mount.holds += 1
        return mount.adapter

    def release(self, digest: str) -> bool:
        """One request less. True when that unmounts the adapter."""
        mount = self._mounts[digest]
        mount.holds -= 1
        return self._leave(digest, mount)

    def unmount(self, digest: str) -> bool:
        """Takes no new request. True when the adapter is gone already, False when it goes later."""
        mount = self._mounts.get(digest)
        if mount is None:
            return True
        mount.leaving = True
        return self._leave(digest, mount)

    def _leave(self, digest: str, mount: _Mount) -> bool:
        gone = mount.leaving and mount.adapter is not None and mount.holds == 0
        if gone:
            del self._mounts[digest]
        return gone
