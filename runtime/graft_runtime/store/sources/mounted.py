"""Sources that the pod has mounted: an open directory below a mount, through no link and never out of it."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
import time
from collections.abc import Iterator
from dataclasses import dataclass
from io import FileIO
from pathlib import Path

from graft_runtime.contract.checkpoints import CheckpointFile, is_module_folder
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.sources.directory import Access, Place

_DIRECTORY_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE_FLAGS = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC


@contextlib.contextmanager
def open_source(place: Place, access: Access) -> Iterator[MountedDirectory]:
    """Open a directory of a mount; see OpenSource."""
    assert place.directory is not None, "only what is mounted is declared"
    if ".." in place.path:
        raise GraftError(
            ErrorCode.UNSAFE_FILE,
            f"the URI `{place.uri}` leaves its source: it holds `..`",
            hint="name the directory by its plain path below the source",
        )
    try:
        descriptor = os.open(place.directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise _not_opened(place.uri, error, "its mount", place.directory) from error
    try:
        for index, part in enumerate(place.path):
            below = _open_directory(descriptor, part, place.uri, "/".join(place.path[: index + 1]))
            os.close(descriptor)
            descriptor = below
        yield MountedDirectory(descriptor, place.uri, access.settled_seconds)
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


class MountedDirectory:
    """An open directory of a mount. What happens to its path meanwhile changes nothing."""

    revision: str | None = None

    def __init__(self, descriptor: int, uri: str, settled_seconds: float) -> None:
        self._descriptor = descriptor
        self.uri = uri
        self._stamps: dict[str, Stamp] = {}
        """Of the files that were opened."""
        self.identity = self._identity(settled_seconds)

    def names(self) -> list[str]:
        """Return the names of what is in the directory, and in its folders of modules, sorted.

        Raises:
            GraftError: UnsafeFile, Unreadable, SourceUnavailable.
        """
        try:
            names = os.listdir(self._descriptor)
            for folder in filter(self._holds_module, [*names]):
                with self._in_folder(folder) as descriptor:
                    names += [f"{folder}/{name}" for name in os.listdir(descriptor)]
            return sorted(names)
        except OSError as error:
            raise _unavailable(self.uri, f"it can't be listed: {error.strerror}") from error

    def check(self, record: CheckpointFile, copy: Path) -> None:
        """Check that no file that was read has changed since: a directory announces nothing.

        Raises:
            GraftError: SourceUnavailable.
        """
        for name, stamp in self._stamps.items():
            if self._stamp(name) != stamp or (name == record.path and record.size != stamp.size):
                raise _unavailable(self.uri, f"{name} changed while it was read")

    def folders_with(self, file: str) -> list[str]:
        """Return the directory's folders that hold `file`: what the URI may have meant."""
        return [name for name in self.names() if _is_file(self._descriptor, f"{name}/{file}")]

    def open_file(self, name: str) -> FileIO:
        """Open a regular file in the directory for reading.

        Raises:
            GraftError: UnsafeFile, Unreadable, SourceUnavailable.
        """
        folder, _, leaf = name.rpartition("/")
        with self._in_folder(folder) as parent:
            try:
                descriptor = os.open(leaf, _FILE_FLAGS, dir_fd=parent)
            except OSError as error:
                if error.errno == errno.ELOOP:
                    raise _link(self.uri, name) from None
                raise _not_opened(self.uri, error, name, leaf, parent) from error
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            os.close(descriptor)
            raise GraftError(ErrorCode.UNSAFE_FILE, f"`{self.uri}`: {name} is not a regular file")
        self._stamps[name] = Stamp.of(status)
        return os.fdopen(descriptor, "rb", buffering=0)

    def size(self, name: str) -> int | None:
        """Return the bytes of a file, holes included."""
        stamp = self._stamp(name)
        return stamp.size if stamp is not None else None

    def _holds_module(self, name: str) -> bool:
        if not is_module_folder(name):
            return False
        try:
            return stat.S_ISDIR(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False).st_mode)
        except OSError:
            return False

    @contextlib.contextmanager
    def _in_folder(self, name: str) -> Iterator[int]:
        """Open a folder of the directory, or give the directory itself where there is no name. Through no link."""
        if not name:
            yield self._descriptor
            return
        descriptor = _open_directory(self._descriptor, name, self.uri, name)
        try:
            yield descriptor
        finally:
            os.close(descriptor)

    def _stamp(self, name: str) -> Stamp | None:
        try:
            return Stamp.of(os.stat(name, dir_fd=self._descriptor, follow_symlinks=False))
        except OSError:
            return None

    def _identity(self, settled_seconds: float) -> str | None:
        """Return a text made of the stamps of all that is in the directory, as git tells a changed file.

        The text is None where the last change is too recent.
        """
        stamps = [(name, self._stamp(name)) for name in self.names()]
        newest = max((stamp.changed for _, stamp in stamps if stamp is not None), default=0)
        if time.time_ns() - newest < settled_seconds * 1_000_000_000:
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
        raise _not_opened(uri, error, f"`{path}`", part, parent) from error


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


def _not_opened(uri: str, error: OSError, told: str, path: str | Path, parent: int | None = None) -> GraftError:
    """Return the fault of what can't be opened: Unreadable where this process may not, else SourceUnavailable.

    Args:
        told: how the message calls it.
        path: below `parent`, the open directory that it is in.
    """
    if error.errno not in {errno.EACCES, errno.EPERM}:
        return _unavailable(uri, f"{told} can't be opened: {error.strerror}")
    groups = ", ".join(str(group) for group in sorted({os.getegid(), *os.getgroups()}))
    return GraftError(
        ErrorCode.UNREADABLE,
        f"`{uri}` can't be read: {told} {_owner(path, parent)}, and this pod runs as uid {os.geteuid()},"
        f" groups {groups}",
        hint="`chmod -R a+rX` the directory where it is stored, or let the pod read it:"
        " securityContext.fsGroup or supplementalGroups with the files' group, or runAsUser with their owner, in the"
        " chart's value podDefaults.spec, or in spec.podTemplate.spec where that may hold it; it is tried again",
    )


def _owner(path: str | Path, parent: int | None) -> str:
    try:
        status = os.stat(path, dir_fd=parent, follow_symlinks=False)
    except OSError:
        if parent is None:
            return "lies where it may not be looked for"
        status, where = os.fstat(parent), "is in a directory that "
    else:
        where = ""
    return f"{where}belongs to {status.st_uid}:{status.st_gid} with mode {stat.S_IMODE(status.st_mode):04o}"


def _unavailable(uri: str, why: str) -> GraftError:
    return GraftError(ErrorCode.SOURCE_UNAVAILABLE, f"`{uri}` can't be read: {why}", hint="it is tried again")
