"""One file of a hub, read front to back: taken up again where it broke off, checked at its end."""

from __future__ import annotations

import hashlib
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import httpx2

from graft_runtime.errors import ErrorCode, GraftError

RESUMES = 5
"""So often in a row without a byte between."""
FIRST_RESUME_SECONDS = 0.25
PATIENCE_SECONDS = 60.0
LEAST_BYTES_PER_SECOND = 16 << 10
"""Slower than this on the average after `PATIENCE_SECONDS` is given up: it would keep others from their turn."""
_OBJECT_ID = re.compile(r"[0-9a-f]{40}|[0-9a-f]{64}")


class Requests(Protocol):
    """What a download needs of its session."""

    uri: str

    def get(self, path: str, headers: Mapping[str, str]) -> httpx2.Response: ...

    def unavailable(self, why: str) -> GraftError: ...


@dataclass(frozen=True)
class Expected:
    """What a hub says of a file."""

    size: int | None
    """Bytes."""
    object_id: str | None
    """Its sha256 (64 hex digits), or the id of its git blob (40)."""


class Download:
    """A stream of bytes. The read that finds the end compares size and hash with what was promised."""

    def __init__(self, session: Requests, path: str, name: str, expected: Expected) -> None:
        self._session, self._path, self._name, self._expected = session, path, name, expected
        self._position = self._resumes = 0
        self._started = time.monotonic()
        self._response = session.get(path, {})
        self._chunks = self._response.iter_raw()
        header = self._response.headers.get("Content-Length", "")
        self._size = expected.size if expected.size is not None else int(header) if header.isdigit() else None
        tag = self._response.headers.get("ETag", "").removeprefix("W/").strip('"')
        self._object_id = expected.object_id or (tag if _OBJECT_ID.fullmatch(tag) else None)
        self._hasher = self._make_hasher()

    def read(self, size: int, /) -> bytes:
        """The next bytes, at least one; none at the end. `size` is a wish.

        Raises:
            GraftError: NotFound, Unauthorized, SourceUnavailable, SourceNotDeclared, DigestMismatch.
        """
        chunk = self._next()
        self._position += len(chunk)
        if self._size is not None and self._position > self._size:
            raise self._mismatch(f"has more than the {self._size} bytes that the hub lists")
        elapsed = time.monotonic() - self._started
        if elapsed > PATIENCE_SECONDS and self._position < elapsed * LEAST_BYTES_PER_SECOND:
            raise self._session.unavailable(f"{self._name} comes too slowly")
        if self._hasher is not None:
            self._hasher.update(chunk)
        if not chunk:
            self._check()
        return chunk

    def close(self) -> None:
        """Lets the connection go."""
        self._response.close()

    def _next(self) -> bytes:
        while True:
            try:
                chunk = next((chunk for chunk in self._chunks if chunk), b"")
            except httpx2.TransportError:
                self._resume()
                continue
            if not chunk and self._size is not None and self._position < self._size:
                self._resume()
                continue
            self._resumes = 0 if chunk else self._resumes
            return chunk

    def _resume(self) -> None:
        self._response.close()
        if self._resumes >= RESUMES:
            raise self._session.unavailable(f"{self._name} breaks off at byte {self._position} again and again")
        time.sleep(FIRST_RESUME_SECONDS * 2**self._resumes)
        self._resumes += 1
        headers = {"Range": f"bytes={self._position}-"} if self._position else {}
        self._response = self._session.get(self._path, headers)
        self._chunks = self._response.iter_raw()
        if self._position and not self._starts_at_position():
            self._chunks = _without(self._chunks, self._position)

    def _starts_at_position(self) -> bool:
        """Whether the answer is what is missing; else it is the whole file. Raises GraftError: SourceUnavailable."""
        if self._response.status_code == 200:
            return False
        given = self._response.headers.get("Content-Range", "")
        if not given.startswith(f"bytes {self._position}-"):
            raise self._session.unavailable(f"the hub answers with another part of {self._name}")
        return True

    def _make_hasher(self) -> hashlib._Hash | None:
        if self._object_id is None:
            return None
        if len(self._object_id) == 64:
            return hashlib.sha256()
        if self._size is None:
            return None
        return hashlib.sha1(f"blob {self._size}\0".encode(), usedforsecurity=False)

    def _check(self) -> None:
        if self._hasher is not None and self._hasher.hexdigest() != self._object_id:
            raise self._mismatch(f"does not have the hash {self._object_id} that the hub lists")

    def _mismatch(self, what: str) -> GraftError:
        return GraftError(
            ErrorCode.DIGEST_MISMATCH, f"`{self._session.uri}`: {self._name} {what}", hint="it is fetched again"
        )


def _without(chunks: Iterator[bytes], count: int) -> Iterator[bytes]:
    """What follows the first `count` bytes."""
    for chunk in chunks:
        if len(chunk) > count:
            yield chunk[count:]
        count = max(0, count - len(chunk))
