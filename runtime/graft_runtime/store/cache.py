"""The content-addressed cache: CACHE/sha256/DIGEST/ holds one checkpoint, read-only, under the hash of its bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from graft_runtime.durable import put_in_place, sync, write_whole
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.checkpoints import FileRecord, Kind, config_file, digest_of, select_files
from graft_runtime.store.sources import Directory, Sources
from graft_runtime.store.sources.directory import Spool

logger = logging.getLogger(__name__)

CHUNK_BYTES = 1 << 20
KEPT_COPIES = 4
_DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_ROOM = _DISK_FULL | {errno.EFBIG}


@dataclass(frozen=True)
class Cached:
    """A checkpoint in the cache."""

    digest: str
    directory: Path
    bytes: int
    revision: str | None = None
    """The exact one that it was copied from, where its source has revisions."""


@dataclass
class _Arrival:
    """A directory on its way in, and the bytes that it takes."""

    directory: Path
    make_room: Callable[[int], None]
    evict: Callable[[], bool]
    taken: int = 0
    records: dict[str, FileRecord] = field(default_factory=dict)
    """The files that are whole."""

    def write(self, file: IO[bytes], piece: bytes) -> None:
        """Raises GraftError: NoCapacity; OSError."""
        self.make_room(len(piece))
        self.taken += len(piece)
        rest = memoryview(piece)
        while rest:  # a disk that fills takes a part, and refuses the next
            try:
                rest = rest[file.write(rest) :]
            except OSError as error:
                if error.errno not in _DISK_FULL or not self.evict():
                    raise

    def sweep(self) -> int:
        """Removes what is not whole; the bytes that this gives back."""
        for path in self.directory.iterdir():
            if path.name not in self.records:
                path.unlink()
        before, self.taken = self.taken, sum(record.size for record in self.records.values())
        return before - self.taken


@dataclass
class _SpoolFile:
    file: IO[bytes]
    arrival: _Arrival

    def write(self, piece: bytes, /) -> None:
        self.arrival.write(self.file, piece)


@dataclass
class _Busy:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


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
        self._known_models = directory / "models.json"
        self._known = self._read_known()
        """Digests by kind and identity of their sources. Those of models outlive a restart."""
        self._busy: dict[str, _Busy] = {}
        self._kept: dict[str, _Arrival] = {}
        """What is left of copies whose sources broke off, by kind and identity, the oldest first."""

    def find(self, digest: str) -> Cached | None:
        """The checkpoint of this digest, when it is here."""
        name = digest.removeprefix("sha256:")
        with self._lock:
            if name not in self._sizes:
                return None
            size = self._sizes[name] = self._sizes.pop(name)
        return Cached(digest, self._checkpoints / name, size)

    @property
    def unfinished(self) -> list[Path]:
        """The directories that copies under way fill."""
        return sorted(self._partial.iterdir())

    def copy(self, sources: Sources, uri: str, kind: Kind, revision: str | None = None) -> Cached:
        """Copies a checkpoint in, hashing it on the way.

        What can't have changed since an earlier copy is not copied again; two callers for it share one copy.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile, NotFound, Unauthorized, ForbiddenAddress, SourceUnavailable,
                NotAnAdapter, NotAModel, DigestMismatch, NoCapacity.
        """
        try:
            with sources.open(uri, revision, lambda: self._spool(uri)) as directory:
                if directory.identity is None:
                    return self._copy(directory, kind)
                key = f"{kind} {directory.identity}"
                with self._alone(key):
                    known = self.find(self._known.get(key, ""))
                    cached = known or self._copy(directory, kind, key)
                    if known is None:
                        self._remember(key, cached.digest)
                return replace(cached, revision=directory.revision)
        except OSError as error:
            with self._lock:
                self._forget_kept(0)
            raise _disk_fault(uri, error) from error

    def _remember(self, key: str, digest: str) -> None:
        with self._lock:
            self._known[key] = digest
            models = {key: digest for key, digest in self._known.items() if key.startswith("model ")}
            if key in models:
                write_whole(self._known_models, json.dumps(models).encode())

    def _read_known(self) -> dict[str, str]:
        """What an earlier start remembered, as far as it is still here."""
        try:
            found = json.loads(self._known_models.read_text())
        except (OSError, ValueError):
            return {}
        here = {f"sha256:{name}" for name in self._sizes}
        return {key: digest for key, digest in found.items() if digest in here} if isinstance(found, dict) else {}

    def _copy(self, directory: Directory, kind: Kind, key: str | None = None) -> Cached:
        names = directory.names()
        folders = [] if config_file(kind) in names else directory.folders_with(config_file(kind))
        selected = select_files(names, kind, directory.uri, folders)
        with self._arrival(directory.uri, key) as arrival:
            records = [_copy_file(directory, name, arrival) for name in selected]
            return self._publish(arrival.directory, digest_of(records), sum(record.size for record in records))

    @contextlib.contextmanager
    def _spool(self, uri: str) -> Iterator[Spool]:
        """A file that is gone afterwards; meanwhile it takes room as everything else does."""
        with self._arrival(uri) as arrival, (arrival.directory / "archive").open("w+b", buffering=0) as file:
            yield _SpoolFile(file, arrival)

    @contextlib.contextmanager
    def _arrival(self, uri: str, key: str | None = None) -> Iterator[_Arrival]:
        """Where a copy arrives. What came whole before its source broke off is kept for the next try under its key."""
        with self._lock:
            arrival = self._kept.pop(key, None) if key is not None else None
        if arrival is None:
            partial = self._partial / str(next(self._numbers))
            partial.mkdir()
            arrival = _Arrival(partial, lambda size: self._make_room(size, uri), self._give_up_one)
        keep = False
        try:
            yield arrival
        except GraftError as error:
            keep = error.code is ErrorCode.SOURCE_UNAVAILABLE and bool(arrival.records)
            raise
        finally:
            with self._lock:
                if keep and key is not None:
                    self._arriving -= arrival.sweep()
                    self._kept[key] = arrival
                    self._forget_kept(KEPT_COPIES)
                else:
                    self._drop(arrival)

    def _forget_kept(self, limit: int) -> None:
        while len(self._kept) > limit:
            self._drop(self._kept.pop(next(iter(self._kept))))

    def _drop(self, arrival: _Arrival) -> None:
        shutil.rmtree(arrival.directory, ignore_errors=True)
        self._arriving -= arrival.taken

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """One thread at a time for each key."""
        with self._lock:
            busy = self._busy.setdefault(key, _Busy())
            busy.users += 1
        try:
            with busy.lock:
                yield
        finally:
            with self._lock:
                busy.users -= 1
                if not busy.users:
                    del self._busy[key]

    def _publish(self, partial: Path, digest: str, size: int) -> Cached:
        name = digest.removeprefix("sha256:")
        target = self._checkpoints / name
        with self._lock:
            if name not in self._sizes:
                put_in_place(partial, target)
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

    def _give_up_one(self) -> bool:
        """The disk is full, of what others keep there as well. False when nothing here can go."""
        with self._lock:
            return self._evict_one()

    def _evict_one(self) -> bool:
        if self._kept:
            self._forget_kept(len(self._kept) - 1)
            return True
        in_use = self._in_use()
        for name in self._sizes:
            if f"sha256:{name}" not in in_use:
                logger.info("evicting sha256:%s from the cache", name)
                del self._sizes[name]
                _remove(self._checkpoints / name)
                return True
        return False


def _copy_file(directory: Directory, name: str, arrival: _Arrival) -> FileRecord:
    if name in arrival.records:
        return arrival.records[name]
    target = arrival.directory / name
    hasher, size = hashlib.sha256(), 0
    with directory.open_file(name) as source, target.open("xb", buffering=0) as file:
        while chunk := _read(source.read, directory.uri, name):
            arrival.write(file, chunk)
            hasher.update(chunk)
            size += len(chunk)
    sync(target)  # its name must not outlive its bytes when the node loses power
    target.chmod(0o444)
    record = FileRecord(name, size, hasher.hexdigest())
    directory.check(record, target)
    arrival.records[name] = record
    return record


def _read(read: Callable[[int], bytes | None], uri: str, name: str) -> bytes:
    try:
        return read(CHUNK_BYTES) or b""
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
