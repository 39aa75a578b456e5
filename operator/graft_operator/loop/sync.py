"""Keeps the store true to the cluster: the first load, the events of the watches, and what was deleted unseen."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_operator.clients.cluster import Cluster, ClusterError, RejectedError
from graft_operator.keys import ObjectKey
from graft_operator.kinds import watched_kinds
from graft_operator.loop.store import Store
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SyncLimits:
    """When to list again."""

    prune_seconds: float = 300.0
    """Between two prunings."""
    prune_soon_seconds: float = 1.0
    """After a watch began to list anew; a burst of such events is one pruning, after its end."""
    retry_seconds: float = 1.0
    """After a first load that failed."""


DEFAULT_LIMITS = SyncLimits()


class Sync:
    """Lists what is watched, and takes its events."""

    def __init__(self, cluster: Cluster, store: Store, settings: Settings, limits: SyncLimits = DEFAULT_LIMITS) -> None:
        self._cluster = cluster
        self._store = store
        self._namespaces: Sequence[str | None] = settings.watch_namespaces or (None,)
        self._limits = limits
        self._soon = asyncio.Event()
        self.loaded = False

    async def load(self) -> None:
        """Fill the store; wait for the API server, and for the CustomResourceDefinition to be served."""
        while not self.loaded:
            try:
                await self._load()
            except ClusterError as error:
                if isinstance(error, RejectedError) and error.status == 403:
                    raise
                logger.warning("the first list failed, trying again: %s", error)
                await asyncio.sleep(self._limits.retry_seconds)
            else:
                self.loaded = True

    def take(self, kind: str, event: str | None, body: Mapping[str, Any]) -> None:
        """Take an event of a watch.

        Args:
            event: ADDED, MODIFIED or DELETED; None where the watch lists anew, so that deletions may have been missed.
        """
        if event is None:
            self._soon.set()
        if event == "DELETED":
            metadata = body["metadata"]
            self._store.remove(ObjectKey(kind, metadata["namespace"], metadata["name"]), metadata["uid"])
        else:
            self._store.put(kind, body)

    async def run(self) -> None:
        """Prune now and then, for ever."""
        while True:
            await self._wait()
            try:
                await self.prune()
            except ClusterError as error:
                logger.warning("pruning failed, trying again later: %s", error)

    async def _wait(self) -> None:
        try:
            async with asyncio.timeout(self._limits.prune_seconds):
                await self._soon.wait()
        except TimeoutError:
            return
        while self._soon.is_set():  # one pruning for a burst, after its end
            self._soon.clear()
            await asyncio.sleep(self._limits.prune_soon_seconds)

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
