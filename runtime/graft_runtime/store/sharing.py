"""What the pods that share one cache tell each other: what each uses, and whose turn it is. Safe against kills.

All of it are locks of files (flock), which end with the process that holds them, however it ends.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import threading
import time
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import IO

LOCK_SECONDS = 30.0
"""How long a pod waits to look into the shared cache; whoever holds it for so long hangs."""
TURN_SECONDS = 600.0
"""How long a pod waits for another that copies the same, before it copies as well."""
POLL_SECONDS = 0.1


class Sharing:
    """One pod among those that share a cache. Thread-safe, blocking.

    Args:
        directory: of the cache; its file system must know locks.
        pod: names this pod among them, for ever.

    Raises:
        OSError: there are no locks, or another process passes for this pod.
    """

    def __init__(self, directory: Path, pod: str) -> None:
        self._pod = pod
        self._users, self._turns = directory / "users", directory / "turns"
        for each in (self._users, self._turns):
            each.mkdir(parents=True, exist_ok=True)
        self._lock = threading.Lock()
        with self.alone():
            self.before = frozenset(_read(self._users / pod))
            self._own = os.open(self._users / pod, os.O_RDWR | os.O_CREAT, 0o644)  # locked until this process ends
            fcntl.flock(self._own, fcntl.LOCK_EX | fcntl.LOCK_NB)
        """What this pod used when its container ended last."""

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Keep all other pods from looking up, adding and removing. Raises OSError: one of them hangs in there."""
        with self._lock, (self._turns / "all").open("ab") as file:
            if not _locked(file, LOCK_SECONDS):
                raise OSError(errno.EBUSY, "another pod keeps it locked")
            yield

    @contextlib.contextmanager
    def turn(self, key: str) -> Iterator[None]:
        """Wait while another pod copies what has this key; it may be there afterwards."""
        name = hashlib.sha256(key.encode()).hexdigest()[:4]
        with (self._turns / name).open("ab") as file:
            _locked(file, TURN_SECONDS)
            yield

    def use(self, names: Collection[str]) -> None:
        """Use these, and no others, from now on. Within `alone`."""
        os.ftruncate(self._own, 0)
        os.pwrite(self._own, json.dumps(sorted(names)).encode(), 0)

    def used(self) -> set[str]:
        """Return what any pod uses, and forget those that have ended. Within `alone`."""
        return {name for pod in self._living() for name in _read(self._users / pod)}

    def ended(self, left_behind: Path) -> list[Path]:
        """Return what ended pods have left in this directory, by their names. Within `alone`."""
        living = set(self._living())
        return [path for path in left_behind.iterdir() if path.name not in living]

    def _living(self) -> Iterator[str]:
        for path in sorted(self._users.iterdir()):
            if path.name == self._pod:
                yield path.name
                continue
            with path.open("ab") as file:
                if not _locked(file, 0):
                    yield path.name
                else:
                    path.unlink()


def _locked(file: IO[bytes], seconds: float) -> bool:
    """Lock a file until it is closed; False where somebody else has it for longer than that."""
    until = time.monotonic() + seconds
    while True:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(POLL_SECONDS)
        else:
            return True


def _read(path: Path) -> list[str]:
    try:
        names = json.loads(path.read_bytes())
    except (FileNotFoundError, ValueError):
        return []
    return [str(name) for name in names] if isinstance(names, list) else []
