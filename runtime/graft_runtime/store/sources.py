"""Declared sources: from a URI to an open directory below a mount, through no link and never out of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Protocol, Self
from urllib.parse import unquote

from graft_runtime.contract.config import SourceMount
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.archives import Spool
from graft_runtime.store.checkpoints import FileRecord
from graft_runtime.store.network import DEFAULT_PACE, Network, Pace
from graft_runtime.store.remotes import ARCHIVE_SCHEME, HUB_SCHEME, Remotes

SETTLED_SECONDS = 2
"""A file that changed so recently may change again within one tick of the file system's clock."""
_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


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
        """The exact one, where the source has revisions."""

    @property
    def identity(self) -> str | None:
        """The same text means the same bytes; None where nothing promises that."""

    def names(self) -> list[str]: ...

    def folders_with(self, file: str) -> list[str]: ...

    def open_file(self, name: str) -> Reader: ...

    def check(self, record: FileRecord, copy: Path) -> None:
        """Compares what was read with what the source announced. Raises GraftError: DigestMismatch."""


class Sources:
    """The declared sources of a pool.

    Args:
        mounts: `spec.sources`.
        directories: where each is mounted in this pod, by its name.
        allowed_networks: where remote ones may be, beside public addresses.
        pace: what those must at least deliver.
    """

    def __init__(
        self,
        mounts: Sequence[SourceMount],
        directories: Mapping[str, Path],
        allowed_networks: Sequence[Network] = (),
        pace: Pace = DEFAULT_PACE,
    ) -> None:
        self._remotes = Remotes(mounts, directories, allowed_networks, pace)
        self._roots: dict[str, Path] = {}
        """By URI prefix, with a slash at its end."""
        for mount in mounts:
            if mount.kind == "remote" or mount.name not in directories:
                continue
            prefixes = (f"pvc://{mount.name}/",) if mount.kind == "claim" else mount.uri_prefixes
            for prefix in prefixes:
                self._roots[prefix if prefix.endswith("/") else prefix + "/"] = directories[mount.name]

    def close(self) -> None:
        """Breaks off what is read from remote ones."""
        self._remotes.close()

    def locate(self, uri: str) -> tuple[Path, tuple[str, ...]]:
        """The mount that answers for a URI, and the path below it, part by part.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile.
        """
        prefix = max((prefix for prefix in self._roots if (uri + "/").startswith(prefix)), key=len, default=None)
        if prefix is None:
            declared = ", ".join(f"`{prefix}…`" for prefix in sorted(self._roots)) or "nothing"
            raise GraftError(
                ErrorCode.SOURCE_NOT_DECLARED,
                f"the URI `{uri}` lies outside the declared sources ({declared})",
                hint="add a source for it to spec.sources",
            )
        parts = tuple(part for part in unquote((uri + "/")[len(prefix) :]).split("/") if part not in {"", "."})
        if ".." in parts or any("\0" in part for part in parts):
            raise GraftError(
                ErrorCode.UNSAFE_FILE,
                f"the URI `{uri}` leaves its source: it holds `..` or a NUL",
                hint="name the directory by its plain path below the source",
            )
        return self._roots[prefix], parts

    def open(
        self, uri: str, revision: str | None, spool: Callable[[], AbstractContextManager[Spool]]
    ) -> AbstractContextManager[Directory]:
        """What a URI names, at a revision where its source has some.

        Args:
            uri: of the checkpoint.
            revision: a commit, a tag or a branch.
            spool: where an archive may be kept while it is open.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile, NotFound, Unauthorized, ForbiddenAddress, SourceUnavailable,
                Corrupt, NoCapacity.
        """
        if uri.startswith(HUB_SCHEME):
            return self._remotes.open_hub(uri, revision)
        if uri.startswith(ARCHIVE_SCHEME):
            return self._remotes.open_archive(uri, spool)
        return self._open_mounted(uri)

    @contextlib.contextmanager
    def _open_mounted(self, uri: str) -> Iterator[SourceDirectory]:
        root, parts = self.locate(uri)
        try:
            descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise _unavailable(uri, f"its mount can't be opened: {error.strerror}") from error
        try:
            for index, part in enumerate(parts):
                below = _open_directory(descriptor, part, uri, "/".join(parts[: index + 1]))
                os.close(descriptor)
                descriptor = below
            yield SourceDirectory(descriptor, uri)
        finally:
            os.close(descriptor)


@dataclass(frozen=True)
class Stamp:
    """What changes with a file's bytes. `changed` can't be set back by whoever writes them, as `modified` can."""

    number: int
    size: int
    """Bytes."""
    modified: int
    """Nanoseconds."""
    changed: int
    """Nanoseconds."""

    @classmethod
    def of(cls, status: os.stat_result) -> Stamp:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)


class SourceDirectory:
    """An open directory of a source. What happens to its path meanwhile changes nothing."""

    revision: str | None = None

    def __init__(self, descriptor: int, uri: str) -> None:
        self._descriptor = descriptor
        self.uri = uri
        self._stamps: dict[str, Stamp] = {}
        """Of the files that were opened."""
        self.identity = self._identity()

    def names(self) -> list[str]:
        """What is in it, sorted. Raises GraftError: SourceUnavailable."""
        try:
            return sorted(os.listdir(self._descriptor))
        except OSError as error:
            raise _unavailable(self.uri, f"it can't be listed: {error.strerror}") from error

    def check(self, record: FileRecord, copy: Path) -> None:
        """A directory announces nothing, but no file that was read may have changed since. Raises GraftError."""
        for name, stamp in self._stamps.items():
            if self._stamp(name) != stamp or (name == record.path and record.size != stamp.size):
                raise _unavailable(self.uri, f"{name} changed while it was read")

    def folders_with(self, file: str) -> list[str]:
        """The folders in it that hold `file`: what the URI may have meant."""
        return [name for name in self.names() if _is_file(self._descriptor, f"{name}/{file}")]

    def open_file(self, name: str) -> BinaryIO:
        """Opens a regular file in it for reading.

        Raises:
            GraftError: UnsafeFile, SourceUnavailable.
        """
        try:
            descriptor = os.open(name, _FILE_FLAGS, dir_fd=self._descriptor)
        except OSError as error:
            if error.errno == errno.ELOOP:
                raise _link(self.uri, name) from None
            raise _unavailable(self.uri, f"{name} can't be opened: {error.strerror}") from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise GraftError(ErrorCode.UNSAFE_FILE, f"`{self.uri}`: {name} is not a regular file")
        self._stamps[name] = Stamp.of(status)
        return os.fdopen(descriptor, "rb", buffering=0)

    def _stamp(self, name: str) -> Stamp | None:
        try:
            return Stamp.of(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))
        except OSError:
            return None

    def _identity(self) -> str | None:
        """By the stamps of all that is in it, as git tells a changed file: none where the last change is too recent."""
        stamps = [(name, self._stamp(name)) for name in self.names()]
        newest = max((stamp.changed for _, stamp in stamps if stamp is not None), default=0)
        if time.time_ns() - newest < SETTLED_SECONDS * 1_000_000_000:
            return None
        return f"{self.uri} {hashlib.sha256(repr(stamps).encode()).hexdigest()}"


def _is_file(directory: int, path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path, dir_fd=directory, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _open_directory(parent: int, part: str, uri: str, path: str) -> int:
    try:
        return os.open(part, _DIRECTORY_FLAGS, dir_fd=parent)
    except OSError as error:
        if _is_link(parent, part):
            raise _link(uri, path) from None
        if error.errno in {errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG}:
            raise GraftError(
                ErrorCode.NOT_FOUND,
                f"`{uri}` holds nothing: there is no directory `{path}` in the source",
                hint="check the path, or put the files there; it is looked for again",
            ) from None
        raise _unavailable(uri, f"`{path}` can't be opened: {error.strerror}") from error


def _is_link(parent: int, part: str) -> bool:
    try:
        return stat.S_ISLNK(os.stat(part, dir_fd=parent, follow_symlinks=False).st_mode)
    except OSError:
        return False


def _link(uri: str, path: str) -> GraftError:
    return GraftError(
        ErrorCode.UNSAFE_FILE,
        f"`{uri}`: `{path}` is a symbolic link, expected a plain file or directory",
        hint="copy the files themselves, for example with `cp -rL` or `hf download --local-dir`",
    )


def _unavailable(uri: str, why: str) -> GraftError:
    return GraftError(ErrorCode.SOURCE_UNAVAILABLE, f"`{uri}` can't be read: {why}", hint="it is tried again")
