"""What the operator knows of the cluster: the pools and their children, slimmed down, fed by events.

An event that is no newer than what is known is ignored, so the answer to one's own write can be stored at once.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from graft_operator.decisions.observed import Child, PodView, PoolView
from graft_operator.decisions.readers import read_child, read_pod, read_pool
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT, KINDS, POD


class Store:
    """Pools, their pods and their other children.

    Args:
        mark: called with the key of a pool of which something changed.
    """

    def __init__(self, mark: Callable[[PoolKey], None]) -> None:
        self._mark = mark
        self._pools: dict[PoolKey, PoolView] = {}
        self._pods: dict[PoolKey, dict[str, PodView]] = defaultdict(dict)
        self._children: dict[PoolKey, dict[ObjectKey, Child]] = defaultdict(dict)
        self._objects: dict[ObjectKey, tuple[PoolKey, str, str]] = {}  # → pool, uid, resource version

    def pool(self, key: PoolKey) -> PoolView | None:
        return self._pools.get(key)

    def pool_keys(self) -> list[PoolKey]:
        return list(self._pools)

    def pods(self, key: PoolKey) -> tuple[PodView, ...]:
        return tuple(self._pods.get(key, {}).values())

    def children(self, key: PoolKey) -> tuple[Child, ...]:
        return tuple(self._children.get(key, {}).values())

    def keys_of(self, kind: str, namespace: str | None = None) -> dict[ObjectKey, str]:
        """Return the objects of one kind → their UIDs."""
        return {
            key: uid
            for key, (_, uid, _) in self._objects.items()
            if key.kind == kind and namespace in (None, key.namespace)
        }

    def put(self, kind: str, body: Mapping[str, Any], *, mark: bool = True) -> PoolKey | None:
        """Remember an object as an event, a list or the answer to a write shows it; return the pool that it belongs to.

        Args:
            mark: whether the pool wants a pass because of it.
        """
        metadata = body["metadata"]
        key = ObjectKey(kind, metadata["namespace"], metadata["name"])
        pool_of = KINDS[kind].pool_of
        pool = None if pool_of is None else pool_of(body)
        before = self._objects.get(key)
        if before is not None and before[0] != pool:
            self._drop(key)
        elif before is not None and not _is_news(metadata, before):
            return pool
        if pool is None:
            return None
        self._objects[key] = (pool, metadata["uid"], metadata.get("resourceVersion", ""))
        if kind == ADAPTER_DEPLOYMENT.name:
            self._pools[pool] = read_pool(body)
        elif kind == POD.name:
            self._pods[pool][key.name] = read_pod(body)
        else:
            self._children[pool][key] = read_child(kind, body)
        if mark:
            self._mark(pool)
        return pool

    def remove(self, key: ObjectKey, uid: str) -> None:
        """Forget an object that is gone; another of the same name stays."""
        known = self._objects.get(key)
        if known is not None and known[1] == uid:
            self._drop(key)

    def prune(self, kind: str, namespace: str | None, before: Mapping[ObjectKey, str], alive: Iterable[str]) -> int:
        """Forget the objects that were known `before` a list and are not among the UIDs `alive`; return how many."""
        uids = set(alive)
        gone = [key for key, uid in before.items() if uid not in uids and namespace in (None, key.namespace)]
        for key in gone:
            self.remove(key, before[key])
        return len(gone)

    def _drop(self, key: ObjectKey) -> None:
        pool, _, _ = self._objects.pop(key)
        if key.kind == ADAPTER_DEPLOYMENT.name:
            self._pools.pop(pool, None)
        elif key.kind == POD.name:
            self._pods[pool].pop(key.name, None)
        else:
            self._children[pool].pop(key, None)
        for index in (self._pods, self._children):
            if pool in index and not index[pool]:
                del index[pool]
        self._mark(pool)


def _is_news(metadata: Mapping[str, Any], known: tuple[PoolKey, str, str]) -> bool:
    """Tell whether an object is newer than what is known: watches repeat what was listed, and our own writes."""
    _, uid, version = known
    if metadata["uid"] != uid:
        return True
    new = str(metadata.get("resourceVersion", ""))
    return not (new.isdecimal() and version.isdecimal() and int(new) <= int(version))
