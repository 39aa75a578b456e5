"""What kopf lists and watches through: the events are taken off its streams, and kopf is left with how far each is.

Kopf would parse each list and each line of a watch whatever its size and depth, ends the operator where one can't be
parsed, and keeps a task and copies for each object.
"""

from __future__ import annotations

import json
import logging
import ssl
from collections.abc import AsyncIterator, Mapping
from types import TracebackType
from typing import Any, Protocol, Self
from urllib.parse import parse_qs, urlsplit

import aiohttp

from graft_operator.clients.bodies import read_json, read_lines
from graft_operator.clients.cluster import ANSWER_BYTES, ClusterError
from graft_operator.kinds import Kind, watched_kinds

logger = logging.getLogger(__name__)

GONE = 410
"""With this word of the API server a watch ends, and begins with a list."""


class Feed(Protocol):
    """Where the objects go."""

    async def list(self, kind: Kind, namespace: str | None) -> str:
        """Take all objects of a kind; return the resourceVersion from which to watch.

        Raises:
            ClusterError
        """

    def take(self, kind: Kind, event: str, body: Mapping[str, Any]) -> None:
        """Take an event: ADDED, MODIFIED or DELETED."""


class WatchSession:
    """Stands in for the `aiohttp.ClientSession` that kopf asks the API server through.

    Args:
        feed: where the objects go.
        namespaces: that are watched; None: all.
        headers, encryption: with the credentials.
    """

    def __init__(
        self,
        feed: Feed,
        namespaces: tuple[str | None, ...],
        headers: Mapping[str, str],
        encryption: ssl.SSLContext | bool = True,
    ) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0, ssl=encryption), headers=dict(headers)
        )
        self._feed = feed
        self._places = {kind.path(namespace): (kind, namespace) for kind in watched_kinds() for namespace in namespaces}

    @property
    def headers(self) -> Any:
        """Return those of each request."""
        return self._session.headers

    @property
    def closed(self) -> bool:
        return self._session.closed

    async def close(self) -> None:
        await self._session.close()

    async def request(self, method: str, url: str, **more: Any) -> Any:
        """Answer a list with none of its objects, and a watch with none of its events; pass on everything else.

        Raises:
            aiohttp.ClientConnectionError: there is no list; kopf asks again later.
        """
        address = urlsplit(url)
        if address.path not in self._places:
            return await self._session.request(method=method, url=url, **more)
        kind, namespace = self._places[address.path]
        if "watch" not in parse_qs(address.query):
            try:
                return _Listed(await self._feed.list(kind, namespace))
            except ClusterError as error:
                raise aiohttp.ClientConnectionError(str(error)) from error
        response = await self._session.request(method=method, url=url, **more)
        return response if response.status >= 400 else _Stream(response, kind, self._feed)


class _Listed:
    """A list without its objects."""

    status = 200

    def __init__(self, version: str) -> None:
        self._version = version

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        return None

    async def json(self) -> dict[str, Any]:
        return {"items": [], "metadata": {"resourceVersion": self._version}}


class _Stream:
    """A watch without its events."""

    def __init__(self, response: aiohttp.ClientResponse, kind: Kind, feed: Feed) -> None:
        self.status = response.status
        self._response = response
        self._kind = kind
        self._feed = feed

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._response.__aexit__(kind, error, trace)

    def close(self) -> None:
        self._response.close()

    @property
    def content(self) -> Self:
        return self

    async def iter_chunked(self, _: int) -> AsyncIterator[bytes]:
        """Yield a bookmark in place of each event."""
        async for line in read_lines(self._response.content.iter_any(), ANSWER_BYTES):
            try:
                word = self._word(read_json(line or b""))
            except (ValueError, LookupError, TypeError) as error:
                logger.warning("an event about a %s can't be read and is left out: %s", self._kind.name, error)
                continue
            yield json.dumps(word).encode() + b"\n"

    def _word(self, event: Mapping[str, Any]) -> Mapping[str, Any]:
        """Take an event; return what kopf has to know of it."""
        if event["type"] == "ERROR":
            logger.info("the watch of %s begins anew: %s", self._kind.plural, event["object"].get("message"))
            return {"type": "ERROR", "object": {"code": GONE}}
        if event["type"] != "BOOKMARK":
            self._feed.take(self._kind, event["type"], event["object"])
        return {
            "type": "BOOKMARK",
            "object": {"metadata": {"resourceVersion": event["object"]["metadata"]["resourceVersion"]}},
        }
