"""Keeps the store true to the cluster where watches can't: the first load, and what was deleted unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence

from graft_operator.clients.cluster import Cluster, ClusterError, RejectedError
from graft_operator.kinds import watched_kinds
from graft_operator.loop.store import Store
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

PRUNE_SECONDS = 300.0
PRUNE_SOON_SECONDS = 1.0
RETRY_SECONDS = 1.0


class Sync:
    """Lists what is watched.

    Args:
        every: called before each regular pruning.
    """

    def __init__(
        self, cluster: Cluster, store: Store, settings: Settings, every: Callable[[], Awaitable[None]]
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._namespaces: Sequence[str | None] = settings.watch_namespaces or (None,)
        self._every = every
        self._soon = asyncio.Event()
        self.loaded = False

    async def load(self) -> None:
        """Fill the store; waits for the API server, and for the CustomResourceDefinition to be served."""
        while not self.loaded:
            try:
                await self._load()
            except ClusterError as error:
                if isinstance(error, RejectedError) and error.status == 403:
                    raise
                logger.warning("the first list failed, trying again: %s", error)
                await asyncio.sleep(RETRY_SECONDS)
            else:
                self.loaded = True

    def prune_soon(self) -> None:
        """A watch listed anew: deletions may have been missed."""
        self._soon.set()

    async def run(self) -> None:
        """Prune now and then, for ever."""
        while True:
            await self._wait()
            try:
                await self._every()
                await self.prune()
            except ClusterError as error:
                logger.warning("pruning failed, trying again later: %s", error)
            except ValueError:
                logger.exception("the signing keys can't be read, going on with the known ones")

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(PRUNE_SECONDS):
                await self._soon.wait()
        except TimeoutError:
            return
        while self._soon.is_set():  # one pruning for a burst, after its end
            self._soon.clear()
            await asyncio.sleep(PRUNE_SOON_SECONDS)

    async def _load(self) -> None:
        for kind in watched_kinds():
            for namespace in self._namespaces:
                for body in await self._cluster.list(kind.name, namespace, kind.selector):
                    self._store.put(kind.name, body)

    async def prune(self) -> None:
        """Forget what is gone."""
        for kind in watched_kinds():
            for namespace in self._namespaces:
                before = self._store.keys_of(kind.name, namespace)
                listed = await self._cluster.list(kind.name, namespace, kind.selector, metadata_only=True)
                gone = self._store.prune(kind.name, namespace, before, [body["metadata"]["uid"] for body in listed])
                if gone:
                    logger.info("pruned %d objects of kind %s that were deleted unseen", gone, kind.name)
