"""Checkpoints on their way into a cache: hashed while they are copied, whole or gone in the end."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import itertools
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from graft_runtime.contract.checkpoints import CheckpointFile
from graft_runtime.durable import sync
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.contents import Contents, files_in
from graft_runtime.store.sources import Directory
from graft_runtime.store.sources.directory import Spool

CHUNK_BYTES = 1 << 20
KEPT_COPIES = 4
DISK_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})

CreateFile = Callable[[Path, str], IO[bytes]]
"""Opens a file without a buffer, in a mode of `open`."""


@dataclass
class Arrival:
    """A directory on its way in, and the bytes that it takes."""

    directory: Path
    uri: str
    contents: Contents
    create: CreateFile
    most: int | None = None
    """Bytes that it may have; None: as many as there is room for."""
    taken: int = 0
    records: dict[str, CheckpointFile] = field(default_factory=dict)
    """The files that are whole."""

    def expect(self, size: int) -> None:
        """Check that there may be so many bytes, before any is written. Raises GraftError: TooLarge, NoCapacity."""
        if self.most is not None and size > self.most:
            raise GraftError(
                ErrorCode.TOO_LARGE,
                f"`{self.uri}` has {size} bytes, the pool takes adapters of at most {self.most}"
                " (spec.cache.adapterSize)",
                hint="save the adapter alone, without whole modules that were not trained, or raise"
                " spec.cache.adapterSize",
            )
        self.contents.check_room(size, self.uri)

    def write(self, file: IO[bytes], piece: bytes) -> None:
        """Write all of a piece. Raises GraftError: TooLarge, NoCapacity; OSError."""
        if self.most is not None and self.taken + len(piece) > self.most:
            self.expect(self.taken + len(piece))
        self.contents.take_room(len(piece), self.uri)
        self.taken += len(piece)
        rest = memoryview(piece)
        while rest:  # a disk that fills takes a part, and refuses the next
            try:
                rest = rest[file.write(rest) :]
            except OSError as error:
                if error.errno not in DISK_FULL or not self.contents.evict():
                    raise

    def copy_file(self, source: Directory, name: str) -> CheckpointFile:
        """Copy one file of a source, unless it came whole in an earlier try."""
        if name in self.records:
            return self.records[name]
        target = self.directory / name
        hasher, size, announced = hashlib.sha256(), 0, source.size(name)
        target.parent.mkdir(exist_ok=True)
        with source.open_file(name) as opened, self.create(target, "xb") as file:
            while chunk := _read(opened.read, source.uri, name):
                self.write(file, chunk)
                hasher.update(chunk)
                size += len(chunk)
                if announced is not None and size > announced:
                    raise _broke_off(source.uri, name, f"it changed while it was read: it had {announced} bytes")
        sync(target)  # its name must not outlive its bytes when the node loses power
        if target.parent != self.directory:
            sync(target.parent)
        target.chmod(0o444)
        record = CheckpointFile(path=name, size=size, sha256=hasher.hexdigest())
        source.check(record, target)
        self.records[name] = record
        return record

    def sweep(self) -> None:
        """Remove what is not whole."""
        for path in files_in(self.directory):
            if path.relative_to(self.directory).as_posix() not in self.records:
                path.unlink()
        whole = sum(record.size for record in self.records.values())
        self.contents.give_back(self.taken - whole)
        self.taken = whole

    def drop(self) -> None:
        """Remove all of it."""
        shutil.rmtree(self.directory, ignore_errors=True)
        self.contents.give_back(self.taken)


@dataclass
class _SpoolFile:
    file: IO[bytes]
    arrival: Arrival

    def write(self, piece: bytes, /) -> None:
        self.arrival.write(self.file, piece)

    def expect(self, size: int, /) -> None:
        self.arrival.expect(size)


class Arrivals:
    """What is on its way into a cache. Thread-safe.

    Args:
        directory: of this process alone; what an earlier one left in it is removed.
        contents: where it goes, and what has the room.
        create: makes its files.
        kept_copies: the most copies that are kept for another try after their sources broke off.
    """

    def __init__(
        self,
        directory: Path,
        contents: Contents,
        *,
        create: CreateFile = io.FileIO,
        kept_copies: int = KEPT_COPIES,
    ) -> None:
        self._directory, self._contents, self._create, self._kept_copies = directory, contents, create, kept_copies
        shutil.rmtree(directory, ignore_errors=True)
        directory.mkdir()
        self._numbers = itertools.count()
        self._kept: dict[str, Arrival] = {}
        """What is left of copies whose sources broke off, by their keys, the oldest first."""
        contents.give_up_partial = self._give_up_one

    @contextlib.contextmanager
    def spool(self, uri: str, most: int | None) -> Iterator[Spool]:
        """Give a file that is gone afterwards; meanwhile it takes room as everything else does."""
        with self.arrive(uri, None, most) as arrival, self._create(arrival.directory / "archive", "w+b") as file:
            yield _SpoolFile(file, arrival)

    @contextlib.contextmanager
    def arrive(self, uri: str, key: str | None, most: int | None) -> Iterator[Arrival]:
        """Give a directory for a copy; what came whole before its source broke off is kept for the next of its key."""
        arrival = self._take(uri, key)
        arrival.most = most
        keep = False
        try:
            yield arrival
        except GraftError as error:
            keep = error.code is ErrorCode.SOURCE_UNAVAILABLE and bool(arrival.records)
            raise
        finally:
            with self._contents.lock:
                if keep and key is not None:
                    arrival.sweep()
                    self._kept[key] = arrival
                    self.forget(self._kept_copies)
                else:
                    arrival.drop()

    def forget(self, most: int = 0) -> None:
        """Remove the oldest copies that are kept for another try, but for so many."""
        with self._contents.lock:
            while len(self._kept) > most:
                self._kept.pop(next(iter(self._kept))).drop()

    def _take(self, uri: str, key: str | None) -> Arrival:
        with self._contents.lock:
            kept = self._kept.pop(key, None) if key is not None else None
        if kept is not None:
            return kept
        directory = self._directory / str(next(self._numbers))
        directory.mkdir()
        return Arrival(directory, uri, self._contents, self._create)

    def _give_up_one(self) -> bool:
        if not self._kept:
            return False
        self.forget(len(self._kept) - 1)
        return True


def _read(read: Callable[[int], bytes | None], uri: str, name: str) -> bytes:
    try:
        return read(CHUNK_BYTES) or b""
    except OSError as error:
        raise _broke_off(uri, name, str(error.strerror)) from error


def _broke_off(uri: str, name: str, why: str) -> GraftError:
    return GraftError(ErrorCode.SOURCE_UNAVAILABLE, f"`{uri}` broke off in {name}: {why}", hint="it is tried again")
