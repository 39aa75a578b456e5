"""A small client of the Kubernetes API: JSON in, JSON out, and watches."""

from __future__ import annotations

import base64
import json
import ssl
import tempfile
from collections.abc import AsyncIterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

import aiohttp
import yaml

JsonObject = dict[str, Any]

_REQUEST_TIMEOUT = aiohttp.ClientTimeout(total=20, connect=5)
_WATCH_SECONDS = 50
_LONGEST_EVENT = 16 * 2**20
METADATA_ONLY = "application/json;as=PartialObjectMetadata{};g=meta.k8s.io;v=v1"

STRATEGIC_MERGE = "application/strategic-merge-patch+json"
MERGE = "application/merge-patch+json"


class ApiError(Exception):
    """The API server refused.

    Args:
        status: the HTTP status.
        reason: the reason of the returned Status, such as `NotFound`.
        message: its message.
    """

    def __init__(self, status: int, reason: str, message: str) -> None:
        super().__init__(f"{status} {reason}: {message}")
        self.status = status
        self.reason = reason
        self.message = message


UNREACHABLE = (aiohttp.ClientError, TimeoutError, OSError)
"""What a call raises, besides ApiError, when the API server does not answer."""


class ApiClient:
    """Talks to the API server that a kubeconfig names. An asynchronous context manager."""

    def __init__(self, kubeconfig: Path) -> None:
        config = yaml.safe_load(kubeconfig.read_text())
        context = _named(config["contexts"], config["current-context"], "context")
        cluster = _named(config["clusters"], context["cluster"], "cluster")
        user = _named(config["users"], context["user"], "user")
        folder = kubeconfig.parent
        self.server: str = cluster["server"].rstrip("/")
        self.certificate_authority = _bytes(cluster, "certificate-authority", folder)
        self._tls = ssl.create_default_context(cadata=self.certificate_authority.decode())
        if "client-certificate" in user or "client-certificate-data" in user:
            _load_client_certificate(self._tls, user, folder)
        self._token = user.get("token")
        self._session: aiohttp.ClientSession | None = None

    async def __aenter__(self) -> ApiClient:
        headers = {"User-Agent": "graft-process-node"}
        if self._token:
            headers["Authorization"] = f"Bearer {self._token}"
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(ssl=self._tls, limit=100), headers=headers, timeout=_REQUEST_TIMEOUT
        )
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        assert self._session is not None
        await self._session.close()

    async def get(self, path: str, **parameters: str) -> JsonObject:
        """The object (or list) at `path`.

        Raises:
            ApiError: the API server refused.
            aiohttp.ClientError, TimeoutError, OSError: it does not answer.
        """
        return await self._call("GET", path, parameters=parameters)

    async def find(self, path: str) -> JsonObject | None:
        """The object at `path`, or None if there is none. Raises as `get`."""
        try:
            return await self.get(path)
        except ApiError as error:
            if error.status == 404:
                return None
            raise

    async def create(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        """POST `body`; the stored object. Raises as `get`."""
        return await self._call("POST", path, body=body)

    async def patch(self, path: str, body: Mapping[str, Any], content_type: str = STRATEGIC_MERGE) -> JsonObject:
        """PATCH; the stored object. Raises as `get`."""
        return await self._call("PATCH", path, body=body, headers={"Content-Type": content_type})

    async def replace(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        """PUT; the stored object. Raises as `get`."""
        return await self._call("PUT", path, body=body)

    async def delete(self, path: str, body: Mapping[str, Any]) -> JsonObject:
        """DELETE with the DeleteOptions `body`. Raises as `get`."""
        return await self._call("DELETE", path, body=body)

    async def list(self, path: str, *, metadata_only: bool = False, **parameters: str) -> JsonObject:
        """The list at `path`. Raises as `get`."""
        headers = {"Accept": METADATA_ONLY.format("List")} if metadata_only else None
        return await self._call("GET", path, parameters=parameters, headers=headers)

    async def watch(
        self, path: str, resource_version: str, *, metadata_only: bool = False, **parameters: str
    ) -> AsyncIterator[JsonObject]:
        """The events of one watch, which ends by itself within a minute. Raises as `get`."""
        assert self._session is not None
        query = {
            **parameters,
            "watch": "1",
            "resourceVersion": resource_version,
            "allowWatchBookmarks": "true",
            "timeoutSeconds": str(_WATCH_SECONDS),
        }
        timeout = aiohttp.ClientTimeout(total=_WATCH_SECONDS + 15, connect=5)
        headers = {"Accept": METADATA_ONLY.format("")} if metadata_only else {}
        async with self._session.get(self.server + path, params=query, timeout=timeout, headers=headers) as response:
            if response.status >= 400:
                raise _error(response.status, await response.read())
            async for line in _lines(response.content):
                event: JsonObject = json.loads(line)
                if event["type"] == "ERROR":
                    status = event["object"]
                    raise ApiError(int(status.get("code") or 500), status.get("reason", ""), status.get("message", ""))
                yield event

    async def _call(
        self,
        method: str,
        path: str,
        *,
        body: Mapping[str, Any] | None = None,
        parameters: Mapping[str, str] | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> JsonObject:
        assert self._session is not None
        sent = None if body is None else json.dumps(body).encode()
        if body is not None:
            headers = {"Content-Type": "application/json", **(headers or {})}
        async with self._session.request(
            method, self.server + path, data=sent, params=parameters, headers=headers
        ) as response:
            content = await response.read()
            if response.status >= 400:
                raise _error(response.status, content)
            return dict(json.loads(content))


async def _lines(stream: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    """Whole lines, however long: `readline` has a limit that a large object passes."""
    collected = bytearray()
    async for chunk in stream.iter_any():
        collected += chunk
        *lines, rest = bytes(collected).split(b"\n")
        for line in lines:
            if line:
                yield line
        collected = bytearray(rest)
        if len(collected) > _LONGEST_EVENT:
            raise aiohttp.ClientPayloadError(f"a watch event is longer than {_LONGEST_EVENT} bytes")


def _error(status: int, content: bytes) -> ApiError:
    try:
        body = json.loads(content)
        return ApiError(status, str(body.get("reason") or ""), str(body.get("message") or ""))
    except (ValueError, AttributeError):
        return ApiError(status, "", content[:500].decode(errors="replace"))


def _named(entries: list[JsonObject], name: str, kind: str) -> JsonObject:
    return next(dict(entry[kind]) for entry in entries if entry["name"] == name)


def _bytes(entry: Mapping[str, str], key: str, folder: Path) -> bytes:
    if f"{key}-data" in entry:
        return base64.b64decode(entry[f"{key}-data"])
    return (folder / entry[key]).read_bytes()


def _load_client_certificate(context: ssl.SSLContext, user: Mapping[str, str], folder: Path) -> None:
    with tempfile.NamedTemporaryFile() as both:  # `ssl` takes it from a file only
        both.write(_bytes(user, "client-certificate", folder) + b"\n" + _bytes(user, "client-key", folder))
        both.flush()
        context.load_cert_chain(both.name)
