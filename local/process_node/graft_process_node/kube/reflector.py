"""A local copy of a list of objects that follows the API server."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from graft_process_node.kube.api_client import UNREACHABLE, ApiClient, ApiError, JsonObject

_log = logging.getLogger(__name__)
_RETRY_FIRST = 0.1
_RETRY_LONGEST = 3.0

Listener = Callable[[JsonObject | None, JsonObject | None], None]
"""Called with (before, after); `None` before an object was seen and after it is gone."""


class Reflector:
    """Lists, then watches, for ever.

    Args:
        path: the list, such as `/api/v1/pods`.
        listener: told of every change, in order; must not raise.
        metadata_only: the objects hold their metadata alone.
        parameters: selectors.
    """

    def __init__(
        self,
        client: ApiClient,
        path: str,
        listener: Listener,
        *,
        metadata_only: bool = False,
        parameters: Mapping[str, str] | None = None,
    ) -> None:
        self._client = client
        self._path = path
        self._listener = listener
        self._metadata_only = metadata_only
        self._parameters = dict(parameters or {})
        self.objects: dict[str, JsonObject] = {}
        """By uid: an object that was replaced by one of the same name is another one."""
        self.listed = asyncio.Event()

    async def run(self) -> None:
        """Until cancelled."""
        wait = _RETRY_FIRST
        while True:
            try:
                version = await self._list()
                self.listed.set()
                while True:
                    version = await self._follow(version)
                    wait = _RETRY_FIRST
            except ApiError as error:
                if error.status == 410:
                    continue
                _log.warning("%s: %s", self._path, error)
            except UNREACHABLE as error:
                _log.info("%s: %r", self._path, error)
            await asyncio.sleep(wait)
            wait = min(_RETRY_LONGEST, 2 * wait)

    async def _list(self) -> str:
        found = await self._client.list(self._path, metadata_only=self._metadata_only, **self._parameters)
        fresh = {item["metadata"]["uid"]: item for item in found["items"] or []}
        for uid in self.objects.keys() - fresh.keys():
            self._forget(uid)
        for item in fresh.values():
            self._learn(item)
        return str(found["metadata"]["resourceVersion"])

    async def _follow(self, version: str) -> str:
        async for event in self._client.watch(
            self._path, version, metadata_only=self._metadata_only, **self._parameters
        ):
            changed = event["object"]
            version = changed["metadata"]["resourceVersion"]
            if event["type"] == "DELETED":
                self._forget(changed["metadata"]["uid"])
            elif event["type"] != "BOOKMARK":
                self._learn(changed)
        return version

    def _learn(self, item: JsonObject) -> None:
        uid = item["metadata"]["uid"]
        before = self.objects.get(uid)
        if before is not None and before["metadata"]["resourceVersion"] == item["metadata"]["resourceVersion"]:
            return
        self.objects[uid] = item
        self._listener(before, item)

    def _forget(self, uid: str) -> None:
        before = self.objects.pop(uid, None)
        if before is not None:
            self._listener(before, None)
