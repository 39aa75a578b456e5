"""Talks to the Kubernetes API, and nothing else does: server-side apply, one field manager, a timeout on every call."""

from __future__ import annotations

import json
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import aiohttp
from kubernetes.aio.client import ApiClient, Configuration

from graft_operator import metrics
from graft_operator.clients.access import Access, load_configuration
from graft_operator.clients.bodies import TooLargeError, read_body, read_json
from graft_operator.clients.fence import Fence
from graft_operator.kinds import KINDS
from graft_operator.objects import KubernetesObject
from graft_operator.settings import FIELD_MANAGER

REQUEST_SECONDS = 10.0
LIST_SECONDS = 60.0
RELOAD_SECONDS = 5.0
PAGE = 500
"""Objects that are asked for at once, where they are small."""
PAGE_BYTES = 4 * 2**20
"""Of an answer with several objects: parsed, it may take twenty times as much."""
ANSWER_BYTES = 16 * 2**20
"""Of any answer. An object of 1.5 MiB, as much as etcd takes, can have 9 MiB of JSON."""
NEVER_A_VERSION = "1"
"""A resourceVersion that no object has: an apply with it creates, and conflicts where the object exists."""
TABLE = "application/json;as=Table;g=meta.k8s.io;v=v1"
"""Names and a few words about each object, whatever is in it."""


class ClusterError(Exception):
    """The API server did not do what it was asked for. `status` is 0 where it did not answer."""

    def __init__(self, message: str, status: int = 0) -> None:
        super().__init__(message)
        self.status = status


class ConflictError(ClusterError):
    """A precondition does not hold: the object exists, changed, or is another one of the same name."""


class RejectedError(ClusterError):
    """The request can never succeed as it stands; the message is the API server's text."""


class UnavailableError(ClusterError):
    """No answer, or one that says to try again."""


class UnreadableError(ClusterError):
    """An answer that is too large, or no JSON that can be read."""


@dataclass(frozen=True)
class Page:
    """Some of the objects of one kind."""

    items: Sequence[KubernetesObject]
    version: str
    """The resourceVersion of the whole list: a watch goes on from there."""
    unreadable: str | None = None
    """The name of an object that is left out."""


class Cluster:
    """A connection to one API server. Made by `connect`.

    Args:
        fence: while it is closed, nothing is sent that changes something.
        counted: whether its requests are in the metrics.
    """

    def __init__(self, configuration: Configuration, fence: Fence | None = None, *, counted: bool = True) -> None:
        self._configuration = configuration
        self._counted = counted
        if fence is not None:
            configuration.trace_configs = [fence.trace()]
        self._client = ApiClient(configuration)
        self._loaded = time.monotonic()

    @classmethod
    async def connect(cls, fence: Fence | None = None, *, counted: bool = True) -> Cluster:
        """Connect as the pod's service account where there is one, else as KUBECONFIG says."""
        return cls(await load_configuration(), fence, counted=counted)

    async def close(self) -> None:
        await self._client.close()

    async def access(self) -> Access:
        """Return the credentials as they are now: tokens of service accounts are replaced within the hour."""
        return Access.of(await load_configuration())

    async def apply(
        self, body: KubernetesObject, *, uid: str | None, resource_version: str | None = None, dry_run: bool = False
    ) -> KubernetesObject:
        """Apply an object, server-side.

        Args:
            uid: of the object that must be there; None: there must be none.
            resource_version: what it must be at, where that matters.

        Returns:
            The object as it is now.

        Raises:
            ConflictError, RejectedError, UnavailableError
        """
        metadata = dict(body["metadata"])
        if uid is None:
            metadata["resourceVersion"] = NEVER_A_VERSION
        else:
            metadata["uid"] = uid
            if resource_version is not None:
                metadata["resourceVersion"] = resource_version
        path = KINDS[body["kind"]].path(metadata["namespace"], metadata["name"])
        query = _apply_query() | ({"dryRun": "All"} if dry_run else {})
        return await self._call("PATCH", path, query=query, body={**body, "metadata": metadata})

    async def apply_status(self, body: KubernetesObject) -> KubernetesObject:
        """Apply the status of one object, server-side, as it was at `metadata.resourceVersion`.

        The API server ignores `metadata.uid` here, so only the version keeps a status from an object of the same name.

        Raises:
            ConflictError: it changed, or is another one. RejectedError: 404 where it is gone. UnavailableError
        """
        metadata = body["metadata"]
        path = KINDS[body["kind"]].path(metadata["namespace"], metadata["name"]) + "/status"
        return await self._call("PATCH", path, query=_apply_query(), body=body)

    async def remove_fields(self, body: KubernetesObject, pointers: Sequence[str]) -> KubernetesObject:
        """Remove fields of an object as it is in `body`; return it as it is then.

        Args:
            pointers: JSON pointers, in the order in which they are removed.

        Raises:
            ConflictError: it has changed. RejectedError, UnavailableError
        """
        metadata = body["metadata"]
        version = {"op": "replace", "path": "/metadata/resourceVersion", "value": metadata["resourceVersion"]}
        patch = [version, *({"op": "remove", "path": pointer} for pointer in pointers)]
        path = KINDS[body["kind"]].path(metadata["namespace"], metadata["name"])
        query = {"fieldManager": FIELD_MANAGER}
        return await self._call("PATCH", path, query=query, body=patch, content_type="application/json-patch+json")

    async def create(self, body: KubernetesObject) -> KubernetesObject:
        """Create an object.

        Raises:
            ConflictError: it exists. RejectedError, UnavailableError
        """
        path = KINDS[body["kind"]].path(body["metadata"]["namespace"])
        return await self._call("POST", path, query={"fieldManager": FIELD_MANAGER}, body=body)

    async def get(self, kind: str, namespace: str, name: str) -> KubernetesObject | None:
        """Return an object, or None where there is none."""
        try:
            return await self._call("GET", KINDS[kind].path(namespace, name))
        except RejectedError as error:
            if error.status == 404:
                return None
            raise

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        """Delete exactly this object; one that is gone already is fine."""
        options = {"preconditions": {"uid": uid}, "propagationPolicy": "Background"}
        try:
            await self._call("DELETE", KINDS[kind].path(namespace, name), body=options)
        except ConflictError:
            return
        except RejectedError as error:
            if error.status != 404:
                raise

    async def pages(self, kind: str, namespace: str | None, label_selector: str | None) -> AsyncIterator[Page]:
        """Yield all objects of a kind, in one namespace or in all; pages are the smaller, the larger the objects."""
        selected = {"labelSelector": label_selector} if label_selector else {}
        path, limit, token = KINDS[kind].path(namespace), PAGE, ""
        while True:
            query = {"limit": str(limit)} | selected | ({"continue": token} if token else {})
            most = PAGE_BYTES if limit > 1 else ANSWER_BYTES
            unreadable = None
            try:
                content = await self._ask("GET", path, query=query, seconds=LIST_SECONDS, most=most)
                page = _parsed(content, f"GET {path}")
                size = len(content) / max(1, len(page.get("items") or ()))
            except UnreadableError:
                if limit > 1:
                    limit = max(1, limit // 8)
                    continue
                page = await self._call("GET", path, query=query | {"includeObject": "None"}, accept=TABLE)
                unreadable, size = str(page["rows"][0]["cells"][0]) if page.get("rows") else None, PAGE_BYTES
            metadata = page.get("metadata", {})
            yield Page(page.get("items") or (), metadata.get("resourceVersion", ""), unreadable)
            if not (token := metadata.get("continue")):
                return
            limit = max(1, min(PAGE, int(PAGE_BYTES / 2 / max(1, size))))  # where the next ones are like the last

    async def _call(self, method: str, path: str, **more: Any) -> KubernetesObject:
        return _parsed(await self._ask(method, path, **more), f"{method} {path}")

    async def _ask(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str] | None = None,
        body: KubernetesObject | Sequence[KubernetesObject] | None = None,
        accept: str = "application/json",
        content_type: str | None = None,
        seconds: float = REQUEST_SECONDS,
        most: int = ANSWER_BYTES,
    ) -> bytes:
        usual = "application/apply-patch+yaml" if method == "PATCH" else "application/json"
        headers = {"Accept": accept, "Content-Type": content_type or usual}
        url = path + (f"?{urlencode(query)}" if query else "")
        status, content = await self._send(method, url, headers, body, seconds=seconds, most=most)
        if status == 401 and await self._reload():
            status, content = await self._send(method, url, headers, body, seconds=seconds, most=most)
        if 200 <= status < 300:
            return content
        raise _error(status, content, f"{method} {path}")

    async def _send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str],
        body: KubernetesObject | Sequence[KubernetesObject] | None,
        *,
        seconds: float,
        most: int,
    ) -> tuple[int, bytes]:
        try:
            request = await self._client.param_serialize(
                method, url, header_params=dict(headers), body=body, auth_settings=["BearerToken"]
            )
            response = await self._client.call_api(*request, _request_timeout=seconds)
            async with response.response as answer:
                content = await read_body(answer.content.iter_any(), most)
        except TooLargeError as error:
            raise UnreadableError(f"{method} {url}: {error}", response.status) from error
        except TimeoutError as error:
            self._count(method, 0)
            raise UnavailableError(f"{method} {url}: no answer within {seconds:g} s") from error
        except (aiohttp.ClientError, OSError) as error:
            self._count(method, 0)
            raise UnavailableError(f"{method} {url}: {error}") from error
        self._count(method, response.status)
        return response.status, content

    def _count(self, method: str, status: int) -> None:
        if self._counted:
            metrics.REQUESTS.labels(method, str(status)).inc()

    async def _reload(self) -> bool:
        if time.monotonic() - self._loaded < RELOAD_SECONDS:
            return False
        self._loaded = time.monotonic()
        self._configuration.api_key.update((await load_configuration()).api_key)
        return True


def _apply_query() -> dict[str, str]:
    return {"fieldManager": FIELD_MANAGER, "force": "true", "fieldValidation": "Strict"}


def _parsed(content: bytes, request: str) -> KubernetesObject:
    try:
        answer: KubernetesObject = read_json(content)
    except ValueError as error:
        raise UnreadableError(f"{request}: the answer can't be read: {error}") from error
    return answer


def _error(status: int, content: bytes, request: str) -> ClusterError:
    try:
        message = str(json.loads(content)["message"])
    except (ValueError, KeyError, TypeError):
        message = content[:500].decode(errors="replace")
    # Another object of the same name comes back as a change of an immutable field.
    if status == 409 or (status == 422 and "metadata.uid" in message):
        return ConflictError(message, status)
    # An unknown field in an apply comes back as 500; it will not get better.
    if status == 500 and "failed to create typed patch object" in message:
        return RejectedError(message, status)
    if status in (401, 429) or status >= 500:
        return UnavailableError(f"{request}: {message}", status)
    return RejectedError(message, status)
