"""A de-duplicating queue of keys: one pass a key at a time, bursts coalesce, passes can be asked for later.

Keys that are due are handed out from one group after the other, so that a group with many keeps no other waiting.
"""

from __future__ import annotations

import asyncio
import heapq
from collections import Counter, OrderedDict
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from graft_runtime.backoff import Backoff

Key = TypeVar("Key")

COALESCE_SECONDS = 0.05
RETRIES = Backoff(first_seconds=0.25, longest_seconds=60.0)


class WorkQueue(Generic[Key]):
    """Keys that want a pass, each with the time from which it may run.

    `take` hands out a key; until its `done` nobody else gets it, and marks that arrive meanwhile are kept for the next
    pass. A mark never postpones an earlier one.

    Args:
        clock: seconds that only grow; by default the running loop's.
        group: which group a key is of; by default all are of one.
        share: keys of one group that are worked on at the same time; the other workers are for the other groups.
    """

    def __init__(
        self,
        clock: Callable[[], float] | None = None,
        group: Callable[[Key], Hashable] = lambda _: None,
        share: float = float("inf"),
    ) -> None:
        self._clock = clock or (lambda: asyncio.get_running_loop().time())
        self._group = group
        self._share = share
        self._ready: OrderedDict[Hashable, dict[Key, None]] = OrderedDict()
        """Group → its keys that are due; the group that was served last comes last."""
        self._workers: Counter[Hashable] = Counter()
        self._due: dict[Key, float] = {}
        self._heap: list[tuple[float, int, Key]] = []
        self._order = 0
        self._active: set[Key] = set()
        self._failures: dict[Key, int] = {}
        self._changed = asyncio.Event()

    def mark(self, key: Key, after: float = COALESCE_SECONDS) -> None:
        """Ask for a pass of `key`, at the latest `after` seconds from now."""
        due = self._clock() + after
        if self._due.get(key, float("inf")) <= due:
            return
        self._due[key] = due
        self._push(due, key)
        self._changed.set()

    def retry(self, key: Key) -> float:
        """Ask for another pass after a failed one; return the seconds until it, more with every failure in a row."""
        self._failures[key] = self._failures.get(key, 0) + 1
        after = RETRIES.seconds(self._failures[key])
        self.mark(key, after)
        return after

    def succeeded(self, key: Key) -> None:
        """Forget the failures of `key`."""
        self._failures.pop(key, None)

    async def take(self) -> Key:
        """Return the next key that is due and that nobody works on; wait for one."""
        while True:
            key, wait = self._next()
            if key is not None:
                return key
            self._changed.clear()
            try:
                async with asyncio.timeout(wait):
                    await self._changed.wait()
            except TimeoutError:
                continue

    def done(self, key: Key) -> None:
        """Note that the pass of `key` has ended."""
        self._active.discard(key)
        self._workers[self._group(key)] -= 1
        if key in self._due:
            self._push(self._due[key], key)
        self._changed.set()

    def _push(self, due: float, key: Key) -> None:
        self._order += 1
        heapq.heappush(self._heap, (due, self._order, key))

    def _next(self) -> tuple[Key | None, float | None]:
        wait = self._collect()
        for group, keys in self._ready.items():
            if self._workers[group] >= self._share:
                continue
            key = next(iter(keys))
            del keys[key]
            self._ready.move_to_end(group)
            if not keys:
                del self._ready[group]
            del self._due[key]
            self._active.add(key)
            self._workers[group] += 1
            return key, None
        return None, wait

    def _collect(self) -> float | None:
        """Find the keys that are due; return the seconds until there is another."""
        while self._heap:
            due, _, key = self._heap[0]
            wait = due - self._clock()
            stale = self._due.get(key) != due or key in self._active  # moved forward, or pushed again by `done`
            if not stale and wait > 0:
                return wait
            heapq.heappop(self._heap)
            if not stale:
                self._ready.setdefault(self._group(key), {})[key] = None
        return None
