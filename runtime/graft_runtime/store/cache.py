"""The content-addressed cache: CACHE/sha256/DIGEST/ holds one checkpoint, read-only, under the hash of its bytes."""

from __future__ import annotations

import errno
import hashlib
import itertools
import logging
import shutil
import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.checkpoints import FileRecord, Kind, config_file, digest_of, select_files
from graft_runtime.store.sources import Directory, Sources

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
_NO_ROOM = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})


@dataclass(frozen=True)
class Cached:
    """A checkpoint in the cache."""

    digest: str
    directory: Path
    bytes: int
    revision: str | None = None
    """The exact version that was copied, where its source has versions; not remembered."""


@dataclass
class _Arrival:
    bytes: int = 0


class Cache:
    """Blocking; safe to use from several threads.

    Args:
        directory: of this pod alone.
        capacity: bytes, or None for what the disk holds.
        in_use: the digests that must stay.
    """

    def __init__(self, directory: Path, capacity: int | None, in_use: Callable[[], Collection[str]]) -> None:
        self._capacity = capacity
        self._in_use = in_use
        self._checkpoints = directory / "sha256"
        self._partial = directory / "partial"
        shutil.rmtree(self._partial, ignore_errors=True)
        self._partial.mkdir(parents=True)
        self._checkpoints.mkdir(exist_ok=True)
        self._numbers = itertools.count()
        self._lock = threading.Lock()
        self._sizes = {path.name: _size(path) for path in self._checkpoints.iterdir()}
        """Bytes by hex digest, least recently used first."""
        self._arriving = 0

    def find(self, digest: str) -> Cached | None:
        """The checkpoint of this digest, when it is here."""
        name = digest.removeprefix("sha256:")
        with self._lock:
            if name not in self._sizes:
                return None
            size = self._sizes[name] = self._sizes.pop(name)
        return Cached(digest, self._checkpoints / name, size)

    def copy(self, sources: Sources, uri: str, kind: Kind, revision: str | None = None) -> Cached:
        """Copies a checkpoint in, hashing it on the way.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile, NotFound, SourceUnavailable, NotAnAdapter, NotAModel,
                NoCapacity, Unauthorized, DigestMismatch.
        """
        partial = self._partial / str(next(self._numbers))
        partial.mkdir()
        arrival = _Arrival()
        try:
            with sources.open(uri, revision) as directory:
                names = directory.names()
                folders = [] if config_file(kind) in names else directory.folders_with(config_file(kind))
                selected = select_files(names, kind, uri, folders)
                records = [self._copy_file(directory, name, partial / name, arrival) for name in selected]
                exact = directory.revision
            cached = self._publish(partial, digest_of(records), sum(record.size for record in records))
            return replace(cached, revision=exact)
        except OSError as error:
            raise _disk_fault(uri, error) from error
        finally:
            shutil.rmtree(partial, ignore_errors=True)
            with self._lock:
                self._arriving -= arrival.bytes

    def _copy_file(self, directory: Directory, name: str, target: Path, arrival: _Arrival) -> FileRecord:
        hasher, size = hashlib.sha256(), 0
        with directory.open_file(name) as source, target.open("xb", buffering=0) as file:
            while chunk := _read(source.read, directory.uri, name):
                self._make_room(len(chunk), directory.uri)
                arrival.bytes += len(chunk)
                file.write(chunk)
                hasher.update(chunk)
                size += len(chunk)
        target.chmod(0o444)
        return FileRecord(name, size, hasher.hexdigest())

    def _publish(self, partial: Path, digest: str, size: int) -> Cached:
        name = digest.removeprefix("sha256:")
        target = self._checkpoints / name
        with self._lock:
            if name not in self._sizes:
                partial.rename(target)
                target.chmod(0o555)
                self._sizes[name] = size
        return Cached(digest, target, size)

    def _make_room(self, size: int, uri: str) -> None:
        """Raises GraftError: NoCapacity."""
        with self._lock:
            while self._capacity is not None and sum(self._sizes.values()) + self._arriving + size > self._capacity:
                if not self._evict_one():
                    raise GraftError(
                        ErrorCode.NO_CAPACITY,
                        f"`{uri}` doesn't fit the cache of {self._capacity} bytes: all that is in it is in use",
                        hint="give the cache more bytes, or list fewer adapters",
                    )
            self._arriving += size

    def _evict_one(self) -> bool:
        in_use = self._in_use()
        for name in self._sizes:
            if f"sha256:{name}" not in in_use:
                logger.info("evicting sha256:%s from the cache", name)
                del self._sizes[name]
                _remove(self._checkpoints / name)
                return True
        return False


def _read(read: Callable[[int], bytes], uri: str, name: str) -> bytes:
    try:
        return read(CHUNK_BYTES)
    except OSError as error:
        raise GraftError(
            ErrorCode.SOURCE_UNAVAILABLE,
            f"`{uri}` broke off in {name}: {error.strerror}",
            hint="it is tried again",
        ) from error


def _size(directory: Path) -> int:
    return sum(path.stat().st_size for path in directory.iterdir())


def _remove(directory: Path) -> None:
    directory.chmod(0o755)
    shutil.rmtree(directory, ignore_errors=True)


def _disk_fault(uri: str, error: OSError) -> GraftError:
    if error.errno in _NO_ROOM:
        return GraftError(
            ErrorCode.NO_CAPACITY,
            f"`{uri}` doesn't fit the disk of the cache: {error.strerror}",
            hint="give the pod's cache volume more room",
        )
    return GraftError(ErrorCode.INTERNAL, f"the cache can't hold `{uri}`: {error.strerror or error}")
