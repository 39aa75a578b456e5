"""Sources: from a URI to an open directory, of a hub or below a declared mount; through no link, never out of it."""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol
from urllib.parse import unquote

from graft_runtime.contract import SourceMount
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.hub import SCHEME, Hub
from graft_runtime.store.hub_network import Network

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


class Readable(Protocol):
    """A file that is read front to back."""

    def read(self, size: int, /) -> bytes: ...


class Directory(Protocol):
    """An open directory of a source, whatever its kind."""

    @property
    def uri(self) -> str: ...

    @property
    def revision(self) -> str | None:
        """The exact version, where the source has versions."""

    def names(self) -> list[str]: ...

    def folders_with(self, file: str) -> list[str]: ...

    def open_file(self, name: str) -> contextlib.AbstractContextManager[Readable]: ...


class Sources:
    """The sources of a pool: the declared ones, and the public hub.

    Args:
        mounts: `spec.sources`.
        directories: where each is mounted in this pod, by its name; of a hub, where its Secret is.
        allowed: networks that hubs may be in although they aren't public.
    """

    def __init__(
        self, mounts: Sequence[SourceMount], directories: Mapping[str, Path], allowed: Sequence[Network] = ()
    ) -> None:
        self._hub = Hub([mount for mount in mounts if mount.kind == "hub"], directories, allowed)
        self._roots: dict[str, Path] = {}
        """By URI prefix, with a slash at its end."""
        for mount in mounts:
            if mount.kind == "hub" or mount.name not in directories:
                continue
            prefixes = (f"pvc://{mount.name}/",) if mount.kind == "claim" else mount.uri_prefixes
            for prefix in prefixes:
                self._roots[prefix if prefix.endswith("/") else prefix + "/"] = directories[mount.name]

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

    @contextlib.contextmanager
    def open(self, uri: str, revision: str | None = None) -> Iterator[Directory]:
        """The directory that a URI and a revision name.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile, NotFound, Unauthorized, SourceUnavailable.
        """
        if uri.startswith(SCHEME):
            with self._hub.open(uri, revision) as directory:
                yield directory
            return
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


class SourceDirectory:
    """An open directory of a source. What happens to its path meanwhile changes nothing."""

    def __init__(self, descriptor: int, uri: str) -> None:
        self._descriptor = descriptor
        self.uri = uri
        self.revision: str | None = None

    def names(self) -> list[str]:
        """What is in it, sorted. Raises GraftError: SourceUnavailable."""
        try:
            return sorted(os.listdir(self._descriptor))
        except OSError as error:
            raise _unavailable(self.uri, f"it can't be listed: {error.strerror}") from error

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
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            os.close(descriptor)
            raise GraftError(ErrorCode.UNSAFE_FILE, f"`{self.uri}`: {name} is not a regular file")
        return os.fdopen(descriptor, "rb", buffering=0)


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
