"""Keeps the store true to the cluster: lists, what was deleted unseen before each, and the events of the watches."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping, Sequence
from typing import Any

from graft_runtime.errors import cut

from graft_operator import metrics
from graft_operator.clients.cluster import Cluster, ClusterError, RejectedError
from graft_operator.keys import ObjectKey
from graft_operator.kinds import Kind, watched_kinds
from graft_operator.loop.store import Store
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

RETRY_SECONDS = 1.0


class Sync:
    """Lists what is watched, and takes its events.

    Args:
        retry_seconds: after a first load that failed.
    """

    def __init__(
        self, cluster: Cluster, store: Store, settings: Settings, retry_seconds: float = RETRY_SECONDS
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._namespaces: Sequence[str | None] = settings.watch_namespaces or (None,)
        self._retry_seconds = retry_seconds
        self._versions: dict[tuple[str, str | None], str] = {}
        """Kind and namespace → where the first load of it ended."""
        self._closed_namespaces: set[str | None] = set()
        """Namespaces that may not be read, for one was deleted with the rights in it: nothing is known of them."""
        self.loaded = False

    async def load(self) -> None:
        """Fill the store; wait for the API server, and for the CustomResourceDefinition to be served.

        Raises:
            RejectedError: the right to read is missing in all namespaces.
        """
        while not self.loaded:
            try:
                await self._load()
            except ClusterError as error:
                if isinstance(error, RejectedError) and error.status == 403:
                    raise
                logger.warning("the first list failed, trying again: %s", error)
                await asyncio.sleep(self._retry_seconds)
            else:
                self.loaded = True

    async def list(self, kind: Kind, namespace: str | None) -> str:
        """List a kind, unless the first load just did; return the resourceVersion from which to watch.

        Raises:
            ClusterError
        """
        if namespace in self._closed_namespaces:
            await self._load_namespace(namespace)
            self._closed_namespaces.discard(namespace)
            logger.info("the namespace %s can be read, and is served", namespace)
        return self._versions.pop((kind.name, namespace), None) or await self._list(kind, namespace)

    def take(self, kind: Kind, event: str, body: Mapping[str, Any]) -> None:
        """Take an event of a watch: ADDED, MODIFIED or DELETED."""
        if event == "DELETED":
            metadata = body["metadata"]
            self._store.remove(ObjectKey(kind.name, metadata["namespace"], metadata["name"]), metadata["uid"])
        else:
            self._put(kind, body)

    async def _load(self) -> None:
        for namespace in self._namespaces:
            try:
                await self._load_namespace(namespace)
            except RejectedError as error:
                others = set(self._namespaces) - self._closed_namespaces - {namespace}
                if error.status != 403 or namespace is None or not others:
                    raise
                self._closed_namespaces.add(namespace)
                logger.warning("the namespace %s can't be read and is left out: %s", namespace, error)

    async def _load_namespace(self, namespace: str | None) -> None:
        """List all kinds of a namespace, or forget it: pools without their pods would be told to have none."""
        try:
            for kind in watched_kinds():
                self._versions[kind.name, namespace] = await self._list(kind, namespace)
        except RejectedError:
            for kind in watched_kinds():
                self._versions.pop((kind.name, namespace), None)
                self._store.prune(kind.name, namespace, self._store.keys_of(kind.name, namespace), ())
            raise

    async def _list(self, kind: Kind, namespace: str | None) -> str:
        before = self._store.keys_of(kind.name, namespace)
        alive: set[str] = set()
        complete, version = True, ""
        async for page in self._cluster.pages(kind.name, namespace, kind.selector):
            version = page.version
            if page.unreadable is not None:
                complete = False
                self._left_out(kind, f"{page.unreadable}: it is too large or nested too deep")
            for body in page.items:
                alive.add(body["metadata"]["uid"])
                self._put(kind, body)
        if complete and (gone := self._store.prune(kind.name, namespace, before, alive)):
            logger.info("%d objects of kind %s were deleted unseen", gone, kind.name)
        return version

    def _put(self, kind: Kind, body: Mapping[str, Any]) -> None:
        """Store an object. One that can't be read keeps nobody from the others."""
        try:
            self._store.put(kind.name, body)
        except Exception as error:
            metadata = body.get("metadata", {})
            name = f"{metadata.get('namespace')}/{metadata.get('name')}"
            self._left_out(kind, f"{name}: {type(error).__name__}: {cut(str(error), 200)}")

    def _left_out(self, kind: Kind, why: str) -> None:
        metrics.UNREADABLE.labels(kind.name).inc()
        logger.warning("a %s can't be read and is left out: %s", kind.name, why)
