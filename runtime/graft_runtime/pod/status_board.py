"""The status that the operator polls: numbered changes, so that a poll brings only what is new."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from graft_runtime.contract.status import AdapterReport, RuntimeStatus

COALESCE_SECONDS = 0.1
MAX_TOMBSTONES = 10_000


class StatusBoard:
    """What a pod reports.

    Args:
        head: the status without adapters; its `sequence` does not matter.
        report: of a name, None when it is gone.
    """

    def __init__(self, head: Callable[[], RuntimeStatus], report: Callable[[str], AdapterReport | None]) -> None:
        self._head, self._report = head, report
        self._last_head: RuntimeStatus | None = None
        self._reports: dict[str, tuple[int, AdapterReport]] = {}
        self._removed: dict[str, tuple[int, AdapterReport]] = {}
        self._news = asyncio.Event()
        self._closed = False
        self._changed: dict[str, None] = {}
        self.sequence = 0

    def changed(self, name: str) -> None:
        """Take note that an adapter, or what depends on it, may have changed: many at once are looked at together."""
        if not self._changed:
            asyncio.get_running_loop().call_soon(self._touch_changed)
        self._changed[name] = None

    def _touch_changed(self) -> None:
        names, self._changed = self._changed, {}
        for name in names:
            self.touch(name)
        self.touch_head()

    def touch(self, name: str) -> None:
        """Take note that something about an adapter may have changed."""
        new = self._report(name)
        _, known = self._reports.get(name, (0, None))
        if new is None and known is not None:
            del self._reports[name]
            self._removed[name] = (self._count(), known.model_copy(update={"removed": True}))
            if len(self._removed) > MAX_TOMBSTONES:
                del self._removed[next(iter(self._removed))]
        elif new is not None and new != known:
            self._removed.pop(name, None)
            self._reports[name] = (self._count(), new)

    def touch_head(self) -> None:
        """Take note that something about the base, readiness or the set may have changed."""
        head = self._head()
        if head != self._last_head:
            self._last_head = head
            self._count()

    def reports(self) -> list[AdapterReport]:
        """Return the reports of every adapter of the catalogue, and those that drain."""
        return [report for _, report in self._reports.values()]

    async def poll(self, boot: str, since: int, wait_seconds: float) -> RuntimeStatus | None:
        """Wait for a change after `since`, and a little longer for what comes with it, and return it; None: no change.

        With another boot id than this pod's, everything, at once.
        """
        head = self._head()
        if boot != head.boot_id:
            return self._status(-1)
        try:
            async with asyncio.timeout(wait_seconds):
                while self.sequence <= since and not self._closed:
                    await self._news.wait()
        except TimeoutError:
            return None
        if self._closed:
            return None
        await asyncio.sleep(COALESCE_SECONDS)
        return self._status(since)

    def close(self) -> None:
        """End every poll that waits."""
        self._closed = True
        self._news.set()

    def _status(self, since: int) -> RuntimeStatus:
        entries = [*self._reports.values(), *(self._removed.values() if since >= 0 else ())]
        changed = tuple(report for sequence, report in entries if sequence > since)
        return self._head().model_copy(update={"sequence": self.sequence, "adapters": changed})

    def _count(self) -> int:
        self.sequence += 1
        self._news.set()
        self._news = asyncio.Event()
        return self.sequence
