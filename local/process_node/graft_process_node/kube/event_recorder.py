"""Events about pods and Services: written in the background, counted when they repeat, never a reason to fail."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from graft_process_node.kube.api_client import MERGE, UNREACHABLE, ApiClient, ApiError

_log = logging.getLogger(__name__)
_MESSAGE_LIMIT = 1024
_REMEMBERED = 4096


@dataclass(frozen=True)
class _Said:
    target: Mapping[str, Any]
    kind: str
    warning: bool
    reason: str
    message: str


@dataclass
class _Record:
    name: str
    count: int


class EventRecorder:
    """Writes Kubernetes Events.

    Args:
        component: who reports.
        host: the node it runs on, if it speaks for one.
    """

    def __init__(self, client: ApiClient, component: str, host: str = "") -> None:
        self._client = client
        self._component = component
        self._host = host
        self._queue: asyncio.Queue[_Said] = asyncio.Queue(maxsize=1000)
        self._records: dict[tuple[str, str, str], _Record] = {}

    def report(self, target: Mapping[str, Any], reason: str, message: str, *, warning: bool, kind: str = "Pod") -> None:
        """Report what happened to `target`, the object itself, or went wrong with it."""
        try:
            self._queue.put_nowait(_Said(target, kind, warning, reason, message))
        except asyncio.QueueFull:
            _log.warning("too many events; one of %s is lost", target["metadata"]["name"])

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            said = await self._queue.get()
            try:
                await self._write(said)
            except (ApiError, *UNREACHABLE) as error:
                _log.info("event %s of %s is lost: %r", said.reason, said.target["metadata"]["name"], error)

    async def _write(self, said: _Said) -> None:
        metadata = said.target["metadata"]
        namespace = metadata["namespace"]
        path = f"/api/v1/namespaces/{namespace}/events"
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
        key = (metadata["uid"], said.reason, said.message)
        record = self._records.get(key)
        if record is not None and await self._count(record, path, now):
            return
        name = f"{metadata['name'][:200]}.{secrets.token_hex(8)}"
        self._records[key] = _Record(name, 1)
        if len(self._records) > _REMEMBERED:
            del self._records[next(iter(self._records))]
        await self._client.create(path, self._body(said, name, now))

    async def _count(self, record: _Record, path: str, now: str) -> bool:
        """Count a repetition; whether the event was still there."""
        record.count += 1
        change = {"count": record.count, "lastTimestamp": now}
        try:
            await self._client.patch(f"{path}/{record.name}", change, content_type=MERGE)
        except ApiError as error:
            if error.status != 404:
                raise
            return False
        return True

    def _body(self, said: _Said, name: str, now: str) -> dict[str, Any]:
        metadata = said.target["metadata"]
        return {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": name, "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": "v1",
                "kind": said.kind,
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
                "resourceVersion": metadata["resourceVersion"],
            },
            "type": "Warning" if said.warning else "Normal",
            "reason": said.reason,
            "message": said.message[:_MESSAGE_LIMIT],
            "source": {"component": self._component, "host": self._host},
            "reportingComponent": self._component,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
