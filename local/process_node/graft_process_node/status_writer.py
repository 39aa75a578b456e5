"""Writes a pod's status when it changed, one write at a time."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable

from graft_process_node.kube.api_client import UNREACHABLE, ApiClient, ApiError, JsonObject

_log = logging.getLogger(__name__)
_RETRY_SECONDS = 0.5


class StatusWriter:
    """Follows one pod.

    Args:
        compute: the status, from the time in seconds since the epoch and the status that was written last.
    """

    def __init__(self, client: ApiClient, pod: JsonObject, compute: Callable[[float, JsonObject], JsonObject]) -> None:
        metadata = pod["metadata"]
        self._client = client
        self._path = f"/api/v1/namespaces/{metadata['namespace']}/pods/{metadata['name']}/status"
        self._uid = metadata["uid"]
        self._compute = compute
        self._dirty = asyncio.Event()
        self._written: JsonObject = {}
        self._paused = False

    def changed(self) -> None:
        """There may be something to write."""
        self._dirty.set()

    def pause(self) -> None:
        """Leave the stored status as it is."""
        self._paused = True

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            await self._dirty.wait()
            self._dirty.clear()
            if not await self._write():
                await asyncio.sleep(_RETRY_SECONDS)
                self._dirty.set()

    async def write_last(self, given_up: Callable[[], bool]) -> None:
        """Write what is true now, again and again until it is stored, the pod is gone or `given_up` says so."""
        status = self._compute(time.time(), self._written)
        if not self._paused and status != self._written:
            await retried(lambda: self._send(status), given_up)

    async def _write(self) -> bool:
        status = self._compute(time.time(), self._written)
        if self._paused or status == self._written:
            return True
        if not await _attempt(lambda: self._send(status)):
            return False
        self._written = status
        return True

    async def _send(self, status: JsonObject) -> JsonObject:
        return await self._client.patch(self._path, {"metadata": {"uid": self._uid}, "status": status})


async def retried(call: Callable[[], Awaitable[object]], given_up: Callable[[], bool]) -> None:
    """Call the API until it takes it, the object is gone or another one has its name, or `given_up` says so."""
    while not given_up():
        if await _attempt(call):
            return
        await asyncio.sleep(_RETRY_SECONDS)


async def _attempt(call: Callable[[], Awaitable[object]]) -> bool:
    try:
        await call()
    except ApiError as error:
        if error.status in (404, 409):
            return True
        _log.warning("%s", error)
        return False
    except UNREACHABLE as error:
        _log.info("%r", error)
        return False
    return True
