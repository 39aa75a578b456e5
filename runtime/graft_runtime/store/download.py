"""One file over HTTP, as a stream that outlives broken connections and notices when the file changes meanwhile."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator, Mapping
from types import TracebackType
from typing import NoReturn

import httpx2

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.network import Pace

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(\d+|\*)")
_RETRIED = frozenset({408, 425, 429, 500, 502, 503, 504})


class Download:
    """Reads one URL from its first byte to its last, over as many connections as that takes.

    Args:
        client: of `network.make_client`.
        url: of the file.
        headers: of each request.
        pace: what the source must at least deliver.
        shown: how errors call the file; the URL itself may carry a signature.
        size: bytes, where the source announced them.
        expect: called with the bytes that an answer announces, before any is read; raises where they are too many.
    """

    def __init__(
        self,
        client: httpx2.Client,
        url: str,
        headers: Mapping[str, str],
        *,
        pace: Pace,
        shown: str,
        size: int | None = None,
        expect: Callable[[int], None] = lambda size: None,
    ) -> None:
        self._expect = expect
        self._client, self._url, self._headers, self._pace = client, url, headers, pace
        self._shown, self._size = shown, size
        self._position = 0
        self._tag: str | None = None
        self._response: httpx2.Response | None = None
        self._pieces: Iterator[bytes] = iter(())
        self._failures = 0
        self._begun = time.monotonic()

    def __enter__(self) -> Download:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Give up the connection."""
        if self._response is not None:
            self._response.close()
            self._response = None

    def read(self, _size: int = -1) -> bytes:
        """Return the next piece, as it comes; empty at the end.

        Raises:
            GraftError: NotFound, Unauthorized, ForbiddenAddress, DigestMismatch, SourceUnavailable.
        """
        while True:
            try:
                if self._response is None:
                    self._connect()
                piece = next(self._pieces, b"")
            except httpx2.HTTPError as error:
                self._broke(describe(error))
                continue
            if piece:
                self._took(len(piece))
                return piece
            if self._size is None or self._position == self._size:
                self.close()
                return b""
            self._broke("it ended early")

    def _took(self, count: int) -> None:
        self._position += count
        self._failures = 0
        if self._size is not None and self._position > self._size:
            raise GraftError(
                ErrorCode.DIGEST_MISMATCH, f"{self._shown} is longer than the {self._size} bytes that were announced"
            )
        if self._late:
            of = f" of {self._size}" if self._size is not None else ""
            most = self._pace.seconds_for(self._position)
            self._unavailable(f"{self._position}{of} bytes took more than {most:.0f} s, the most that they may take")

    @property
    def _late(self) -> bool:
        return time.monotonic() - self._begun > self._pace.seconds_for(self._position)

    def _broke(self, why: str) -> None:
        self.close()
        self._failures += 1
        if self._failures >= self._pace.tries or self._late:
            self._unavailable(f"{why}, {self._failures} times after {self._position} bytes")
        time.sleep(self._pace.pauses.seconds(self._failures))

    def _connect(self) -> None:
        headers = {**self._headers, "Accept-Encoding": "identity"}
        if self._position:
            headers["Range"] = f"bytes={self._position}-"
            if self._tag is not None:
                headers["If-Range"] = self._tag
        response = self._client.send(self._client.build_request("GET", self._url, headers=headers), stream=True)
        self._response = response
        if response.status_code in _RETRIED:
            raise httpx2.RemoteProtocolError(f"it answered {response.status_code}")
        if response.status_code not in {200, 206}:
            raise_for_status(response, self._shown)
            self._unavailable(f"it answered {response.status_code}")
        if response.headers.get("content-encoding", "identity") != "identity":
            self._unavailable(f"it is sent encoded as {response.headers['content-encoding']}")
        self._pieces = response.iter_raw()
        if self._position:
            self._check_resumed(response)
        else:
            self._check_announced(response)

    def _check_announced(self, response: httpx2.Response) -> None:
        tag = response.headers.get("etag")
        self._tag = tag if tag and not tag.startswith("W/") else None
        length = response.headers.get("content-length", "")
        announced = int(length) if length.isdecimal() else None
        if self._size is not None and announced is not None and announced != self._size:
            raise GraftError(
                ErrorCode.DIGEST_MISMATCH, f"{self._shown} has {announced} bytes, the source listed {self._size}"
            )
        self._size = announced if self._size is None else self._size
        if self._size is not None:
            self._expect(self._size)

    def _check_resumed(self, response: httpx2.Response) -> None:
        tag = response.headers.get("etag")
        if self._tag is not None and tag is not None and tag != self._tag:
            self._unavailable("it changed while it was read")
        if response.status_code == 200:
            if self._tag is None or tag != self._tag:
                self._unavailable("it can't be read on from where the connection broke")
            self._skip(self._position)
            return
        content_range = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if content_range is None or int(content_range[1]) != self._position:
            self._unavailable("it was read on from another place than asked")
        if self._size is not None and content_range[2] not in {"*", str(self._size)}:
            self._unavailable("its size changed while it was read")

    def _skip(self, count: int) -> None:
        while count:
            piece = next(self._pieces, b"")
            if not piece:
                raise httpx2.RemoteProtocolError("it ended early")
            if len(piece) > count:
                rest = piece[count:]
                following = self._pieces
                self._pieces = (part for parts in ((rest,), following) for part in parts)
            count -= min(count, len(piece))

    def _unavailable(self, why: str) -> NoReturn:
        raise GraftError(ErrorCode.SOURCE_UNAVAILABLE, f"{self._shown} broke off: {why}", hint="it is tried again")


def describe(error: httpx2.HTTPError) -> str:
    """Return what broke, without the URL, which may carry a signature."""
    return str(error).partition("\n")[0] or type(error).__name__


def raise_for_status(response: httpx2.Response, shown: str) -> None:
    """Raise GraftError for an answer that is a refusal: Unauthorized, NotFound."""
    status = response.status_code
    if status in {401, 403}:
        raise GraftError(
            ErrorCode.UNAUTHORIZED,
            f"{shown} was refused with {status}",
            hint="declare its prefix in spec.sources with a secretName whose Secret holds a `token` that may read it",
        )
    if status in {404, 410}:
        raise GraftError(ErrorCode.NOT_FOUND, f"{shown} is not there ({status})", hint="check the URI and the revision")
