"""What a source is to the store: a directory that is open, and what its reader is given to open it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Protocol, Self

import httpx2

from graft_runtime.contract.checkpoints import CheckpointFile
from graft_runtime.contract.config import SourceMount
from graft_runtime.contract.schemes import Scheme, host_of, path_below
from graft_runtime.store.network import Pace


class Reader(Protocol):
    """A file of a source, read from its start to its end."""

    def read(self, size: int, /) -> bytes | None: ...

    def __enter__(self) -> Self: ...

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None, /
    ) -> None: ...


class Directory(Protocol):
    """What a URI names, while it is open."""

    @property
    def uri(self) -> str: ...

    @property
    def revision(self) -> str | None:
        """Return the exact revision, where the source has revisions."""

    @property
    def identity(self) -> str | None:
        """Return a text that stands for the directory's bytes: the same text means the same bytes.

        None where nothing promises that the same text means the same bytes.
        """

    def names(self) -> list[str]: ...

    def folders_with(self, file: str) -> list[str]: ...

    def open_file(self, name: str) -> Reader: ...

    def size(self, name: str) -> int | None:
        """Return the bytes of a file as its source announces them, holes included; None where it does not."""

    def check(self, record: CheckpointFile, copy: Path) -> None:
        """Compare what was read with what the source announced. Raises GraftError: DigestMismatch."""


class Spool(Protocol):
    """A file of the cache that an archive is kept in while it is read."""

    file: IO[bytes]

    def write(self, piece: bytes, /) -> None:
        """Write all of a piece. Raises GraftError: TooLarge, NoCapacity; OSError."""

    def expect(self, size: int, /) -> None:
        """Check that there may be so many bytes, before any has come. Raises GraftError: TooLarge, NoCapacity."""


@dataclass(frozen=True)
class Place:
    """What a URI names, and the declared source that the URI lies in."""

    uri: str
    scheme: Scheme
    revision: str | None = None
    """A commit, a tag or a branch, as it was asked for."""
    prefix: str = ""
    """The prefix of the source; empty where none is declared."""
    mount: SourceMount | None = None
    directory: Path | None = None
    """In this pod: the mount itself, or that of the source's Secret."""

    @property
    def path(self) -> tuple[str, ...]:
        """Return the segments below the prefix."""
        return path_below(self.prefix, self.uri)

    @property
    def endpoint(self) -> str:
        """Return the server to ask, without a slash at its end; empty where the URI itself names the server."""
        declared = self.mount.endpoint if self.mount is not None else None
        return (declared or self.scheme.endpoint or "").rstrip("/")

    @property
    def host(self) -> str:
        """Return the host that is asked, with its port where the URL names one."""
        return host_of(self.uri, self.endpoint)

    @property
    def origin(self) -> str:
        """Return what all reads of the same source wait for: a host, or a mount."""
        if self.scheme.mount == "remote":
            return self.host
        assert self.mount is not None, "only what is mounted is declared"
        return self.mount.name


@dataclass(frozen=True)
class Caps:
    """What an archive may be."""

    archive_bytes: int = 4 << 30
    content_bytes: int = 8 << 30
    entries: int = 1000
    ratio: int = 100
    """Content to archive, for all above the first 16 MiB."""
    free_bytes: int = 16 << 20

    def content_limit(self, archive_bytes: int) -> int:
        """Return the most that an archive of so many bytes may hold."""
        return min(self.content_bytes, max(self.free_bytes, archive_bytes * self.ratio))


DEFAULT_CAPS = Caps()


@dataclass(frozen=True)
class Access:
    """What a reader may use."""

    client: httpx2.Client
    """Connects to permitted addresses alone."""
    pace: Pace
    """What a source must at least deliver."""
    caps: Caps
    settled_seconds: float
    """A file that changed more recently may change again within one tick of the file system's clock."""
    spool: Callable[[], AbstractContextManager[Spool]]
    """Where an archive may be kept while it is open."""


OpenSource = Callable[[Place, Access], AbstractContextManager[Directory]]
"""Opens what a place names.

Raises GraftError: UnsafeFile, NotFound, Unauthorized, ForbiddenAddress, SourceUnavailable, Corrupt, NoCapacity.
"""
