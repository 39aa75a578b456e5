"""What the operator knows of the cluster: the pools, their Adapters and their children, slimmed down, fed by events.

An event that is no newer than what is known is ignored, so the answer to one's own write can be stored at once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from typing import Any

from graft_operator.clients.shares import Room
from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.observed import AdapterView, Child, Failure, PodView, PoolView
from graft_operator.decisions.readers import controller_uid, read_adapter, read_child, read_pod, read_pool
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER, ADAPTER_DEPLOYMENT, CONFIG_MAP, DEPLOYMENT, KINDS, POD, REPLICA_SET

NAMESPACE_BYTES = 64 * 2**20
"""Of what one namespace may have the operator remember: a thousand pools of 60 KiB."""
VIEW_BYTES = 2 * 2**10
"""Of an object of which only a few fields are remembered."""


class NoRoomError(Exception):
    """A namespace has more than the operator remembers of one."""


class Store:
    """Pools, the Adapters that name them, their pods and their other children.

    What bears a pool's label and is not controlled by it is left out.

    Args:
        mark: called with the key of a pool of which something changed.
        room: what each namespace may have remembered.
    """

    def __init__(self, mark: Callable[[PoolKey], None], room: Room | None = None) -> None:
        self._mark = mark
        self._room = room or Room(NAMESPACE_BYTES)
        self._sizes: dict[ObjectKey, int] = {}
        self._pools: dict[PoolKey, PoolView] = {}
        self._adapters: dict[PoolKey, dict[ObjectKey, AdapterView]] = defaultdict(dict)
        self._pods: dict[PoolKey, dict[str, PodView]] = defaultdict(dict)
        self._replica_sets: dict[PoolKey, dict[str, tuple[str, str | None]]] = defaultdict(dict)
        """Name → UID, and that of what controls it."""
        self._children: dict[PoolKey, dict[ObjectKey, Child]] = defaultdict(dict)
        self._objects: dict[ObjectKey, tuple[PoolKey, str, str]] = {}  # → pool, uid, resource version

    def pool(self, key: PoolKey) -> PoolView | None:
        return self._pools.get(key)

    def pool_keys(self) -> list[PoolKey]:
        return list(self._pools)

    def adapters(self, key: PoolKey) -> tuple[AdapterView, ...]:
        """Return the Adapters that name the pool, whether or not there is one."""
        return tuple(self._adapters.get(key, {}).values())

    def pods(self, key: PoolKey) -> tuple[PodView, ...]:
        """Return the pods of the pool's own Deployment; a label alone makes no pod one of them."""
        deployments = {child.uid for child in self.children(key) if child.kind == DEPLOYMENT.name}
        makers = {uid for uid, owner in self._replica_sets.get(key, {}).values() if owner in deployments}
        return tuple(pod for pod in self._pods.get(key, {}).values() if pod.owner_uid in makers)

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

        Raises:
            NoRoomError: it is left out. Not so a pool: it is remembered without its spec, to say so in its status.
        """
        metadata = body["metadata"]
        key = ObjectKey(kind, metadata["namespace"], metadata["name"])
        pool = self._pool_of(kind, body)
        before = self._objects.get(key)
        if before is not None and before[0] != pool:
            self._drop(key)
        elif before is not None and not _is_news(metadata, before):
            return pool
        if pool is None:
            return None
        has_room = self._has_room(key, _size(kind, body))
        if not has_room and kind != ADAPTER_DEPLOYMENT.name:
            raise NoRoomError(self._no_room)
        # What was left out is news whenever it comes again.
        self._objects[key] = (pool, metadata["uid"], metadata.get("resourceVersion", "") if has_room else "")
        if kind == ADAPTER_DEPLOYMENT.name:
            self._pools[pool] = read_pool(body) if has_room else self._without_spec(body)
        elif kind == ADAPTER.name:
            self._adapters[pool][key] = read_adapter(body)
        elif kind == POD.name:
            self._pods[pool][key.name] = read_pod(body)
        elif kind == REPLICA_SET.name:
            link = metadata["uid"], controller_uid(body)
            mark = mark and self._replica_sets[pool].get(key.name) != link
            self._replica_sets[pool][key.name] = link
        else:
            self._children[pool][key] = read_child(kind, body)
        if mark:
            self._mark(pool)
        return pool

    def _pool_of(self, kind: str, body: Mapping[str, Any]) -> PoolKey | None:
        """Return the pool that an object belongs to; None where it is to be left alone."""
        found = KINDS[kind]
        pool = None if found.pool_of is None else found.pool_of(body)
        if pool is None or not found.made:
            return pool
        known = self._pools.get(pool)
        return pool if known is not None and controller_uid(body) == known.uid else None

    def _has_room(self, key: ObjectKey, size: int) -> bool:
        self._room.give(key.namespace, self._sizes.pop(key, 0))
        has_room = self._room.take(key.namespace, size)
        if has_room:
            self._sizes[key] = size
        return has_room

    def _without_spec(self, body: Mapping[str, Any]) -> PoolView:
        slim = read_pool({"metadata": body["metadata"]})
        return replace(slim, failure=Failure(Reason.TOO_LARGE, self._no_room))

    @property
    def _no_room(self) -> str:
        return (
            f"the AdapterDeployments and adapter sets of this namespace have more than {self._room.most} bytes in all"
            "\n\nhint: make them smaller, or spread them over several namespaces"
        )

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
        self._room.give(key.namespace, self._sizes.pop(key, 0))
        if key.kind == ADAPTER_DEPLOYMENT.name:
            self._pools.pop(pool, None)
        elif key.kind == ADAPTER.name:
            self._adapters[pool].pop(key, None)
        elif key.kind == POD.name:
            self._pods[pool].pop(key.name, None)
        elif key.kind == REPLICA_SET.name:
            self._replica_sets[pool].pop(key.name, None)
        else:
            self._children[pool].pop(key, None)
        indexes: tuple[dict[PoolKey, Any], ...] = (self._adapters, self._pods, self._replica_sets, self._children)
        for index in indexes:
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


def _size(kind: str, body: Mapping[str, Any]) -> int:
    """Return roughly how many bytes are remembered of an object."""
    if kind in (ADAPTER_DEPLOYMENT.name, ADAPTER.name):
        return VIEW_BYTES + len(json.dumps([body.get("spec"), body.get("status")]))
    if kind == CONFIG_MAP.name:
        return VIEW_BYTES + sum(map(len, (body.get("binaryData") or {}).values()))
    return VIEW_BYTES
