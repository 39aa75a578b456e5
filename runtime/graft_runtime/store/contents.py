"""The checkpoints in a cache, and the room that they share with what arrives."""

from __future__ import annotations

import contextlib
import logging
import shutil
import threading
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from pydantic import ValidationError

from graft_runtime.contract.checkpoints import CheckpointFile
from graft_runtime.contract.control import CheckpointFiles
from graft_runtime.durable import sync, write_whole
from graft_runtime.errors import ErrorCode, GraftError

logger = logging.getLogger(__name__)


class Contents:
    """Checkpoints by digest; where room is needed, the least recently used one that is not in use goes. Thread-safe.

    Args:
        directory: for the checkpoints, each in a directory named by its hex digest, and the lists of their files.
        capacity: bytes, or None for what the disk holds.
        in_use: the digests that must stay.
    """

    def __init__(self, directory: Path, capacity: int | None, in_use: Callable[[], Collection[str]]) -> None:
        self.directory, self.lists = directory / "sha256", directory / "lists"
        self._capacity, self._in_use = capacity, in_use
        self.arriving = directory / "partial"
        """Where copies are made before they are whole."""
        self.directory.mkdir(exist_ok=True)
        self.lists.mkdir(exist_ok=True)
        self.lock = threading.RLock()
        self.give_up_partial: Callable[[], bool] = lambda: False
        """Removes a copy that broke off, before a checkpoint has to go; False where there is none."""
        self._sizes = self._begin()
        """Bytes by hex digest, least recently used first."""
        self._arriving = 0
        """Bytes."""
        self._taking = threading.Lock()
        """Held while room is made: of two that find none, the first gets what goes."""

    def turn(self, key: str) -> AbstractContextManager[None]:
        """Wait while another pod copies what has this key; it may be there afterwards. Blocking."""
        return contextlib.nullcontext()

    def look(self, digest: str) -> tuple[Path, int] | None:
        """Find a checkpoint, also one that another pod has added. Blocking."""
        return self.find(digest)

    def find(self, digest: str) -> tuple[Path, int] | None:
        """Return the directory of a checkpoint and its bytes, used just now; None where it is not here."""
        name = digest.removeprefix("sha256:")
        with self.lock:
            if name not in self._sizes:
                return None
            size = self._sizes[name] = self._sizes.pop(name)
        return self.directory / name, size

    def files(self, digest: str) -> CheckpointFiles | None:
        """Return what a checkpoint consists of; None where it is not here."""
        name = digest.removeprefix("sha256:")
        if name not in self._sizes:
            return None
        try:
            return CheckpointFiles.read((self.lists / name).read_bytes())
        except (OSError, ValidationError, GraftError):
            return None

    def add(self, partial: Path, digest: str, files: Sequence[CheckpointFile]) -> tuple[Path, int]:
        """Put a directory that has arrived under its digest, unless it is there; return where it is, and its bytes."""
        name, size = digest.removeprefix("sha256:"), sum(file.size for file in files)
        target = self.directory / name
        sync(partial)  # outside of the lock, which the event loop takes as well
        write_whole(self.lists / name, CheckpointFiles(files=tuple(files)).canonical_json())
        with self.lock:
            if name not in self._sizes:
                partial.replace(target)
                _set_mode(target, 0o555)
                self._sizes[name] = size
        sync(self.directory)
        return target, size

    def check_room(self, size: int, uri: str) -> None:
        """Check that so many bytes fit beside what is in use, before anything goes. Raises GraftError: NoCapacity."""
        if self._capacity is None:
            return
        with self.lock:
            in_use = self._in_use()
            kept = sum(held for name, held in self._sizes.items() if f"sha256:{name}" in in_use)
        if size > self._capacity - kept:
            raise GraftError(
                ErrorCode.NO_CAPACITY,
                f"`{uri}` has {size} bytes; of the {self._capacity} bytes of the cache {kept} are in use",
                hint="give the cache more bytes (spec.cache.size), or list fewer adapters",
            )

    def take_room(self, size: int, uri: str) -> None:
        """Reserve bytes for what arrives from a URI. Raises GraftError: NoCapacity."""
        with self._taking:
            while self._capacity is not None and self._total() + self._arriving + size > self._capacity:
                if not self.evict():
                    raise GraftError(
                        ErrorCode.NO_CAPACITY,
                        f"`{uri}` doesn't fit the cache of {self._capacity} bytes: all that is in it is in use",
                        hint="give the cache more bytes, or list fewer adapters",
                    )
            with self.lock:
                self._arriving += size

    def give_back(self, size: int) -> None:
        """Return bytes that were reserved."""
        with self.lock:
            self._arriving -= size

    def evict(self) -> bool:
        """Remove the copy or checkpoint that is needed least. False where all that is here is in use."""
        with self.lock:
            if self.give_up_partial():
                return True
            in_use = self._in_use()
            for name in self._sizes:
                if f"sha256:{name}" not in in_use:
                    self._remove(name)
                    return True
            return False

    def _begin(self) -> dict[str, int]:
        """Return the bytes of what is here at the start, by hex digest."""
        return {path.name: size_of(path) for path in self.directory.iterdir()}

    def _total(self) -> int:
        """Return the bytes of all checkpoints that are here."""
        with self.lock:
            return sum(self._sizes.values())

    def _remove(self, name: str) -> None:
        logger.info("evicting sha256:%s from the cache", name)
        with self.lock:
            self._sizes.pop(name, None)
        _remove(self.directory / name)
        (self.lists / name).unlink(missing_ok=True)


def size_of(directory: Path) -> int:
    """Return the bytes of the files in the directory of a checkpoint, and in its folders."""
    return sum(path.stat().st_size for path in files_in(directory))


def files_in(directory: Path) -> Iterator[Path]:
    """Give the files in the directory of a checkpoint, and in its folders."""
    for path in directory.iterdir():
        if path.is_dir():
            yield from path.iterdir()
        else:
            yield path


def _set_mode(directory: Path, mode: int) -> None:
    """Set the permissions of the directory of a checkpoint, and of its folders."""
    directory.chmod(mode)
    for path in directory.iterdir():
        if path.is_dir():
            path.chmod(mode)


def _remove(directory: Path) -> None:
    _set_mode(directory, 0o755)
    shutil.rmtree(directory, ignore_errors=True)
