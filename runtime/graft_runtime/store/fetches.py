"""Brings checkpoints into the cache without blocking the event loop: from other pods of the pool, or from sources.

One copy a source at a time, back-off, retries.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from functools import partial
from weakref import WeakValueDictionary

from graft_runtime.backoff import Backoff
from graft_runtime.contract.checkpoints import Source
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.checkpoints import Kind
from graft_runtime.store.in_place import InPlaceCheckpoints
from graft_runtime.store.peers import PeerPods
from graft_runtime.store.sources import Sources
from graft_runtime.threads import Threads

logger = logging.getLogger(__name__)

PER_ORIGIN = 4
"""Copies of adapters at once from one host, or from one mount: what is slow has its own others wait."""
COPIES = 64
"""At once from all mounts, as many from all hosts, and as many for those who ask which bytes a source holds now."""
PEERS_SECONDS = 2.0
"""How long other pods may take to hand over an adapter before its source is asked as well."""
RETRIES = Backoff(first_seconds=1.0, longest_seconds=60.0)
SLOW_RETRIES = Backoff(first_seconds=4.0, longest_seconds=60.0)
"""Where a person must act: files may appear, or still be on their way."""


def retry_seconds(code: ErrorCode, attempt: int) -> float | None:
    """Return how long to wait before another try, the first being attempt 0; None: another try would end the same."""
    if not code.retried:
        return None
    return (RETRIES if code.passes else SLOW_RETRIES).seconds(attempt + 1)


class Fetches:
    """Fetches of this pod.

    Args:
        sources: the declared ones.
        cache: where the checkpoints go.
        peers: the other pods.
        wait_seconds: before another try after a fault, the first being try 0; None: it would end the same.
    """

    def __init__(
        self,
        sources: Sources,
        cache: Cache,
        peers: PeerPods,
        wait_seconds: Callable[[ErrorCode, int], float | None] = retry_seconds,
    ) -> None:
        self._sources = sources
        self._cache = cache
        self._peers = peers
        self._wait_seconds = wait_seconds
        self._looks = Threads(4, "look")
        self._bases, self._questions = Threads(1, "base"), Threads(COPIES, "resolve")
        self._mounted, self._remote = Threads(COPIES, "mounted"), Threads(COPIES, "remote")
        self._origins: WeakValueDictionary[str, asyncio.Semaphore] = WeakValueDictionary()
        """Of those that are being read."""
        self._running: dict[tuple[Source, Kind], asyncio.Task[Cached]] = {}

    async def resolve(self, source: Source, kind: Kind) -> Cached:
        """Copy what the source holds now. A second caller joins the copy that is under way.

        Raises:
            GraftError: see Cache.copy.
        """
        return await self._joined(source, kind, self._questions)

    async def _joined(self, source: Source, kind: Kind, threads: Threads) -> Cached:
        key = (source, kind)
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._copy(source, kind, threads))
            self._running[key] = task
            task.add_done_callback(lambda ended: self._ended(key, ended))
        return await asyncio.shield(task)

    async def fetch(self, source: Source, kind: Kind, digest: str | None, name: str) -> Cached:
        """Return the checkpoint of this digest, from the cache or else from the source.

        Raises:
            GraftError: DigestMismatch, and see Cache.copy.
        """
        if digest is not None and (found := await self._here(digest)) is not None:
            return found
        cached = await self._joined(source, kind, self._threads(source, kind))
        if digest is not None and cached.digest != digest:
            raise GraftError(
                ErrorCode.DIGEST_MISMATCH,
                f"`{source.uri}` of `{name}` holds {cached.digest}, expected {digest}",
                hint="the files changed: resolve the source again, or put the old files back",
            )
        return cached

    async def fetch_until_there(
        self, source: Source, kind: Kind, digest: str | None, name: str, failed: Callable[[GraftError], None]
    ) -> Cached | None:
        """Fetch again and again, with back-off; tell `failed` each failure. Return None when trying again is no use.

        Other pods are asked before the source, again whenever the source has failed, and for an adapter whenever pods
        are introduced. Both copy at once only what is small: an adapter whose pods are slow.
        """
        if digest is not None and (found := await self._here(digest)) is not None:
            return found
        ask, asked = asyncio.Event(), asyncio.Event()

        def told(error: GraftError) -> None:
            failed(error)
            ask.set()

        async def from_source() -> Cached | None:
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(PEERS_SECONDS if small else None):
                    await asked.wait()
            return await self._from_source(source, kind, digest, name, told)

        small = kind == "adapter"
        with self._peers.told_of_news(ask) if small else contextlib.nullcontext():
            tasks = {
                asyncio.create_task(self._from_peers(kind, digest, ask, asked)),
                asyncio.create_task(from_source()),
            }
            try:
                done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
                return done.pop().result()
            finally:
                for task in tasks:
                    task.cancel()

    async def open_in_place(
        self, checkpoints: InPlaceCheckpoints, source: Source, digest: str | None, failed: Callable[[GraftError], None]
    ) -> Cached | None:
        """Hash a base where it lies, again and again as `fetch_until_there` does."""

        async def opened() -> Cached:
            return await self._bases.run(checkpoints.open, source.uri, digest)

        return await self._until_done(opened, failed)

    async def _here(self, digest: str) -> Cached | None:
        """Return a checkpoint that is in the cache; look there beside the event loop for what others have added."""
        return self._cache.find(digest) or await self._looks.run(self._cache.look, digest)

    async def _from_peers(
        self, kind: Kind, digest: str | None, ask: asyncio.Event, asked: asyncio.Event
    ) -> Cached | None:
        """Ask other pods once, and each time that `ask` is set; set `asked` when they were asked once."""
        if kind == "adapter":
            await self._peers.first_introduction()
        while True:
            ask.clear()
            wanted = digest or (self._peers.base if kind == "model" else None)
            if wanted is not None and (cached := await self._peers.fetch(wanted, kind)) is not None:
                return cached
            asked.set()
            await ask.wait()

    async def _from_source(
        self,
        source: Source,
        kind: Kind,
        digest: str | None,
        name: str,
        failed: Callable[[GraftError], None],
    ) -> Cached | None:
        return await self._until_done(lambda: self.fetch(source, kind, digest, name), failed)

    async def _until_done(
        self, attempted: Callable[[], Awaitable[Cached]], failed: Callable[[GraftError], None]
    ) -> Cached | None:
        """Try again and again, with back-off; tell `failed` each failure. Return None when trying again is no use."""
        attempt = 0
        while True:
            try:
                return await attempted()
            except GraftError as error:
                logger.warning("%s", error)
                failed(error)
                wait = self._wait_seconds(error.code, attempt)
                if wait is None:
                    return None
            attempt += 1
            await asyncio.sleep(wait)

    async def close(self) -> None:
        """Stop, and wait for nothing: a copy that runs is left to end with the process."""
        for task in list(self._running.values()):
            task.cancel()
        self._sources.close()
        self._peers.close()

    def _ended(self, key: tuple[Source, Kind], task: asyncio.Task[Cached]) -> None:
        self._running.pop(key, None)
        if not task.cancelled():
            task.exception()  # whoever asked may be gone; an error nobody takes is not a fault of ours

    def _threads(self, source: Source, kind: Kind) -> Threads:
        if kind == "model":
            return self._bases
        return self._remote if self._sources.place(source.uri).scheme.mount == "remote" else self._mounted

    async def _copy(self, source: Source, kind: Kind, threads: Threads) -> Cached:
        copy = partial(self._cache.copy, self._sources, source.uri, kind, source.revision)
        if threads is self._bases:
            return await threads.run(copy)
        origin = self._sources.place(source.uri).origin
        async with self._origins.setdefault(origin, asyncio.Semaphore(PER_ORIGIN)):
            return await threads.run(copy)
