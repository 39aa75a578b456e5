"""The content-addressed cache: CACHE/sha256/DIGEST/ holds one checkpoint, read-only, under the hash of its bytes."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import logging
import os
import threading
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from graft_runtime.contract.control import CheckpointFiles
from graft_runtime.durable import write_whole
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.arrivals import DISK_FULL, Arrivals, CreateFile
from graft_runtime.store.checkpoints import Kind, config_file, digest_of, select_files
from graft_runtime.store.contents import Contents
from graft_runtime.store.pruning import prune_identities, remove_partial
from graft_runtime.store.shared_contents import SharedContents
from graft_runtime.store.sources import Directory, Sources

logger = logging.getLogger(__name__)

_NO_ROOM = DISK_FULL | {errno.EFBIG}


@dataclass(frozen=True)
class Cached:
    """A checkpoint in the cache."""

    digest: str
    directory: Path
    bytes: int
    revision: str | None = None
    """The exact one that it was copied from, where its source has revisions."""

    def check(self) -> None:
        """Check that it is as it was hashed, which a copy always is. Blocking. Raises GraftError: DigestMismatch."""


@dataclass
class _Busy:
    lock: threading.Lock = field(default_factory=threading.Lock)
    users: int = 0


class Cache:
    """Blocking; safe to use from several threads.

    Args:
        directory: of this pod alone, or of several that share it.
        capacity: bytes, or None for what the disk holds.
        in_use: the digests that must stay.
        adapter_bytes: the most that one adapter may have; None: what there is room for.
        pod: names this pod among those that share the directory; None: it is this pod's alone.
        create: makes its files.
    """

    def __init__(
        self,
        directory: Path,
        capacity: int | None,
        in_use: Callable[[], Collection[str]],
        *,
        adapter_bytes: int | None = None,
        pod: str | None = None,
        create: CreateFile = io.FileIO,
    ) -> None:
        self._adapter_bytes = adapter_bytes
        directory.mkdir(parents=True, exist_ok=True)
        self._contents = (
            Contents(directory, capacity, in_use) if pod is None else SharedContents(directory, pod, capacity, in_use)
        )
        self._arrivals = Arrivals(self._contents.arriving, self._contents, create=create)
        self._identities = directory / "identities"
        self._identities.mkdir(exist_ok=True)
        for written in (self._identities, self._contents.lists):
            remove_partial(written)
        self._lock = threading.Lock()
        self._busy: dict[str, _Busy] = {}

    def prune(self) -> None:
        """Remove identities of sources that are of no use any more; what can't be removed stays."""
        try:
            prune_identities(self._identities, self._contents.directory)
        except OSError as error:
            logger.warning("the cache keeps what is of no use: %s", error)

    def find(self, digest: str) -> Cached | None:
        """Return the checkpoint of this digest, when it is here."""
        directory_and_bytes = self._contents.find(digest)
        return Cached(digest, *directory_and_bytes) if directory_and_bytes is not None else None

    def look(self, digest: str) -> Cached | None:
        """Find a checkpoint, also one that another pod has added; None as well where that can't be told. Blocking."""
        try:
            directory_and_bytes = self._contents.look(digest)
        except OSError as error:
            logger.warning("the cache can't be looked into for %s: %s", digest, error)
            return None
        return Cached(digest, *directory_and_bytes) if directory_and_bytes is not None else None

    def copy(self, sources: Sources, uri: str, kind: Kind, revision: str | None = None) -> Cached:
        """Copy a checkpoint in, hashing it on the way.

        What can't have changed since an earlier copy is not copied again; two callers for it share one copy.

        Raises:
            GraftError: SourceNotDeclared, UnsafeFile, NotFound, Unauthorized, ForbiddenAddress, SourceUnavailable,
                NotAnAdapter, NotAModel, DigestMismatch, TooLarge, NoCapacity.
        """
        try:
            with sources.open(uri, revision, lambda: self._arrivals.spool(uri, self._most(kind))) as directory:
                if directory.identity is None:
                    return self._copy(directory, kind)
                key = f"{kind} {directory.identity}"
                with self._alone(key):
                    known = self._remembered(key)
                    cached = known or self._copy(directory, kind, key)
                    if known is None:
                        write_whole(self._known(key), cached.digest.encode())
                return replace(cached, revision=directory.revision)
        except OSError as error:
            self._arrivals.forget()
            raise disk_fault(uri, error) from error

    def take(self, directory: Directory, kind: Kind, digest: str) -> Cached:
        """Copy a checkpoint of this digest out of a directory that is open, unless it is here already.

        Raises:
            GraftError: see `copy`.
        """
        try:
            with self._alone(digest):
                return self.look(digest) or self._copy(directory, kind, expected=digest)
        except OSError as error:
            raise disk_fault(directory.uri, error) from error

    def files(self, digest: str) -> CheckpointFiles | None:
        """Return what a checkpoint consists of; None where it is not here."""
        return self._contents.files(digest)

    def _most(self, kind: Kind) -> int | None:
        return self._adapter_bytes if kind == "adapter" else None

    def _copy(self, directory: Directory, kind: Kind, key: str | None = None, *, expected: str | None = None) -> Cached:
        names = directory.names()
        folders = [] if config_file(kind) in names else directory.folders_with(config_file(kind))
        selected = select_files(names, kind, directory.uri, folders)
        with self._arrivals.arrive(directory.uri, key, self._most(kind)) as arrival:
            arrival.expect(sum(directory.size(name) or 0 for name in selected))
            records = [arrival.copy_file(directory, name) for name in selected]
            digest = digest_of(records)
            if expected not in (None, digest):
                raise GraftError(ErrorCode.DIGEST_MISMATCH, f"`{directory.uri}` holds {digest}, expected {expected}")
            return Cached(digest, *self._contents.add(arrival.directory, digest, records))

    def _remembered(self, key: str) -> Cached | None:
        """Return what a source of this identity held, as far as it is still here."""
        try:
            known = self.look(self._known(key).read_text())
        except (OSError, ValueError):
            return None
        with contextlib.suppress(OSError):  # one that isn't ours to touch is pruned early
            os.utime(self._known(key))
        return known

    def _known(self, key: str) -> Path:
        """Return the file with the digest of what a source of this identity holds. It outlives a restart."""
        return self._identities / hashlib.sha256(key.encode()).hexdigest()

    @contextlib.contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Let one thread at a time pass for each key, of all pods that share the cache."""
        with self._lock:
            busy = self._busy.setdefault(key, _Busy())
            busy.users += 1
        try:
            with busy.lock, self._contents.turn(key):
                yield
        finally:
            with self._lock:
                busy.users -= 1
                if not busy.users:
                    del self._busy[key]


def disk_fault(uri: str, error: OSError) -> GraftError:
    """Return the fault of a cache that can't be written to."""
    if error.errno in _NO_ROOM:
        return GraftError(
            ErrorCode.NO_CAPACITY,
            f"`{uri}` doesn't fit the disk of the cache: {error.strerror}",
            hint="give the pod's cache volume more room",
        )
    return GraftError(ErrorCode.INTERNAL, f"the cache can't hold `{uri}`: {error.strerror or error}")
