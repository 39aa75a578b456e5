"""Talks to the control ports of the pods, and nothing else does.

It has connections of its own, without a limit: long polls to a thousand pods must not starve anything.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterable
from dataclasses import dataclass
from ipaddress import ip_address
from typing import TypeVar

import aiohttp
from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.control import Accepted, Peer, Peers, Resolution, ResolveRequest, checkpoint_audience
from graft_runtime.contract.ports import control_url
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.contract.wire import Fault, Message
from graft_runtime.errors import GraftError, cut
from pydantic import ValidationError

from graft_operator.clients.bodies import TooLargeError, read_body
from graft_operator.clients.fence import Fence
from graft_operator.clients.shares import Pace, Room

CONNECT_SECONDS = 2.0
PUSH_SECONDS = 10.0
POLL_SECONDS = 25
POLL_GRACE_SECONDS = 5.0
RESOLVE_SECONDS = 60.0
MAX_ERROR_TEXT = 500
ANSWER_BYTES = 4 * 2**20
"""Of one answer: four times what 256 adapters with a long fault each take."""
READING_BYTES = 16 * 2**20
"""Of the answers that are being read from the pods of one namespace."""
POLLS_AT_ONCE, POLLS_A_SECOND = 20, 4
"""Of one pod."""
NAMESPACE_POLLS_AT_ONCE, NAMESPACE_POLLS_A_SECOND = 2000, 100
"""Of the pods of one namespace: a thousand that have no news take 40 a second."""
BYTES_AT_ONCE, BYTES_A_SECOND = 32 * 2**20, 2**20
"""Of what the pods of one namespace answer to polls."""

Answer = TypeVar("Answer", bound=Message)


@dataclass(frozen=True)
class PodAddress:
    """Where a pod's control port is, and whom its tokens are for."""

    uid: str
    ip: str
    namespace: str = ""

    @property
    def url(self) -> str:
        return control_url(self.ip)


class RuntimeUnreachableError(Exception):
    """The pod did not answer in time, or with something that is no answer. `refused`: nobody listens there."""

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class OtherVersionError(RuntimeUnreachableError):
    """The pod answered in another version of the contract. `fault` says both."""

    def __init__(self, error: GraftError) -> None:
        super().__init__(error.message)
        self.fault = Fault.of(error)


class RuntimeRefusedError(Exception):
    """The pod answered with an HTTP error."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class RuntimeClient:
    """One HTTP client for all pods. What a namespace's pods answer has room and time of its own.

    Args:
        sign: makes a token for an audience, from a time in Unix seconds on.
        fence: while it is closed, pods are asked for their status alone.
    """

    def __init__(self, sign: Callable[[str, float], str], fence: Fence | None = None) -> None:
        self._sign = sign
        self._reading = Room(READING_BYTES)
        self._polls = Pace(POLLS_AT_ONCE, POLLS_A_SECOND)
        self._namespace_polls = Pace(NAMESPACE_POLLS_AT_ONCE, NAMESPACE_POLLS_A_SECOND)
        self._bytes = Pace(BYTES_AT_ONCE, BYTES_A_SECOND)
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=0),
            trace_configs=None if fence is None else [fence.trace()],
            auto_decompress=False,  # a KiB of an answer could be a MiB
            read_bufsize=16 * 2**10,
            timeout=aiohttp.ClientTimeout(total=PUSH_SECONDS, sock_connect=CONNECT_SECONDS),
        )

    async def close(self) -> None:
        await self._session.close()

    async def status(self, pod: PodAddress, boot: str, since: int, wait: int = POLL_SECONDS) -> RuntimeStatus | None:
        """Return what changed in the pod after `since` of `boot`; None when nothing did for `wait` seconds.

        It waits first where the pod was asked, or those of its namespace have answered, more than their share.

        Raises:
            RuntimeUnreachableError, RuntimeRefusedError
        """
        self._polls.count(pod.uid)
        self._namespace_polls.count(pod.namespace)
        waits = (
            self._polls.wait(pod.uid),
            self._namespace_polls.wait(pod.namespace),
            self._bytes.wait(pod.namespace),
        )
        await asyncio.sleep(max(waits))
        query = {"boot": boot, "since": str(since), "wait": str(wait)}
        content = await self._request("GET", pod, "/status", wait + POLL_GRACE_SECONDS, query=query)
        if content is None:
            return None
        self._bytes.count(pod.namespace, len(content))
        return _parse(RuntimeStatus, content, pod)

    async def push(self, pod: PodAddress, adapter_set: AdapterSet) -> Accepted:
        """Put an adapter set in force.

        Raises:
            RuntimeUnreachableError, RuntimeRefusedError: 409 where the pod has a newer one.
        """
        content = await self._request("PUT", pod, "/adapter-set", PUSH_SECONDS, body=adapter_set)
        return _parse(Accepted, content or b"", pod)

    async def resolve(self, pod: PodAddress, request: ResolveRequest) -> Resolution:
        """Ask for the exact version of a source.

        Raises:
            RuntimeUnreachableError, RuntimeRefusedError
        """
        content = await self._request("POST", pod, "/resolve", RESOLVE_SECONDS, body=request)
        return _parse(Resolution, content or b"", pod)

    async def introduce(self, pod: PodAddress, peers: Iterable[PodAddress], base: str | None) -> None:
        """Tell a pod which others may be asked for checkpoints, with a token for each.

        Args:
            base: the digest of the base model that they serve from the pod's own source.

        Raises:
            RuntimeUnreachableError, RuntimeRefusedError
        """
        now = time.time()
        introduced = tuple(
            Peer(address=ip_address(peer.ip), token=self._sign(checkpoint_audience(peer.uid), now)) for peer in peers
        )
        await self._request("PUT", pod, "/peers", PUSH_SECONDS, body=Peers(peers=introduced, base=base))

    async def _request(
        self,
        method: str,
        pod: PodAddress,
        path: str,
        seconds: float,
        *,
        query: dict[str, str] | None = None,
        body: Message | None = None,
    ) -> bytes | None:
        headers = {"Authorization": f"Bearer {self._sign(pod.uid, time.time())}"}
        if body is not None:
            headers["Content-Type"] = "application/json"
        try:
            async with self._session.request(
                method,
                pod.url + path,
                params=query,
                data=None if body is None else body.canonical_json(),
                headers=headers,
                timeout=aiohttp.ClientTimeout(total=seconds, sock_connect=CONNECT_SECONDS),
                allow_redirects=False,
            ) as response:
                content = await self._read(response.content.iter_any(), pod)
                status = response.status
        except aiohttp.ClientConnectorError as error:
            raise RuntimeUnreachableError(
                f"nobody listens at {pod.url}", refused=isinstance(error.os_error, ConnectionRefusedError)
            ) from error
        except (aiohttp.ClientError, TimeoutError) as error:
            raise RuntimeUnreachableError(f"{method} {pod.url}{path}: {error or type(error).__name__}") from error
        if status == 204:
            return None
        if status >= 300:
            raise RuntimeRefusedError(status, _error_text(content))
        return content

    async def _read(self, pieces: AsyncIterator[bytes], pod: PodAddress) -> bytes:
        taken = 0

        def take(size: int) -> bool:
            nonlocal taken
            if not self._reading.take(pod.namespace, size):
                return False
            taken += size
            return True

        try:
            return await read_body(pieces, ANSWER_BYTES, take)
        except TooLargeError as error:
            raise RuntimeUnreachableError(f"{pod.url} answers more than it may: {error}") from error
        finally:
            self._reading.give(pod.namespace, taken)


def _parse(model: type[Answer], content: bytes, pod: PodAddress) -> Answer:
    try:
        return model.read(content)
    except GraftError as error:
        raise OtherVersionError(error) from error
    except ValidationError as error:
        faults = "; ".join(fault["msg"] for fault in error.errors(include_url=False)[:3])
        raise RuntimeUnreachableError(f"{pod.url} answered with no {model.__name__}: {faults}") from error


def _error_text(content: bytes) -> str:
    try:
        return cut(Fault.model_validate_json(content).message, MAX_ERROR_TEXT)
    except ValidationError:
        return content[:MAX_ERROR_TEXT].decode(errors="replace")
