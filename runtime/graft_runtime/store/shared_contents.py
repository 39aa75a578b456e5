"""The checkpoints in a cache that several pods share: what one has copied is there for all, until none uses it."""

from __future__ import annotations

import re
import shutil
import time
from collections.abc import Callable, Collection, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

from graft_runtime.contract.checkpoints import CheckpointFile
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.contents import Contents, size_of
from graft_runtime.store.sharing import Sharing

KEPT_SECONDS = 600.0
"""How long a pod keeps what it has looked up, before its set or its base has to name it."""


_DIGITS = re.compile("[0-9a-f]{64}")


class SharedContents(Contents):
    """See Contents; `find` knows what this pod has looked up or added alone, and so keeps.

    Args:
        directory: of the cache.
        pod: names this pod among those that share it, for ever.

    Raises:
        GraftError: Internal, where it can't be shared.
    """

    def __init__(self, directory: Path, pod: str, capacity: int | None, in_use: Callable[[], Collection[str]]) -> None:
        super().__init__(directory, capacity, in_use)
        self._since: dict[str, float] = {}
        """When each was looked up."""
        self._measured: dict[str, int] = {}
        """Bytes of all that were seen here."""
        self.arriving = directory / "partial" / pod
        try:
            self._sharing = Sharing(directory, pod)
            self._start(self.arriving.parent)
        except OSError as error:
            raise GraftError(
                ErrorCode.INTERNAL,
                f"the shared cache can't be used: {error}",
                hint="spec.cache.claimName must name a claim that may be written to, on a file system with locks",
            ) from error

    def _start(self, partial: Path) -> None:
        """Remove what pods that have ended were copying, and keep what this one used before."""
        partial.mkdir(exist_ok=True)
        with self._sharing.alone():
            for left in self._sharing.ended(partial):
                shutil.rmtree(left, ignore_errors=True)
            for name in self._sharing.before:
                self._adopt(name)
            self._sharing.use(self._sizes)

    def turn(self, key: str) -> AbstractContextManager[None]:
        return self._sharing.turn(key)

    def look(self, digest: str) -> tuple[Path, int] | None:
        if (found := self.find(digest)) is not None:
            return found
        with self._sharing.alone():
            self._adopt(digest.removeprefix("sha256:"))
            self._tell()
        return self.find(digest)

    def add(self, partial: Path, digest: str, files: Sequence[CheckpointFile]) -> tuple[Path, int]:
        name = digest.removeprefix("sha256:")
        with self._sharing.alone():
            self._adopt(name)
            added = super().add(partial, digest, files)
            self._since[name] = time.monotonic()
            self._tell()
        return added

    def evict(self) -> bool:
        with self.lock:
            if self.give_up_partial():
                return True
        with self._sharing.alone():
            self._tell()
            used = self._sharing.used()
            free = (name for name in sorted(self._all(), key=self._last_looked_up) if name not in used)
            name = next(free, None)
            if name is not None:
                self._remove(name)
        return name is not None

    def _begin(self) -> dict[str, int]:
        return {}

    def _total(self) -> int:
        return sum(self._measure(name) for name in self._all())

    def _all(self) -> list[str]:
        return [path.name for path in self.directory.iterdir()]

    def _measure(self, name: str) -> int:
        if name not in self._measured:
            try:
                self._measured[name] = size_of(self.directory / name)
            except OSError:  # another pod has just removed it
                return 0
        return self._measured[name]

    def _last_looked_up(self, name: str) -> float:
        try:
            return (self.lists / name).stat().st_mtime
        except OSError:
            return 0.0

    def _adopt(self, name: str) -> None:
        """Know a checkpoint that is here, whichever pod has added it."""
        if _DIGITS.fullmatch(name) is None or not (self.directory / name).is_dir():
            return
        with self.lock:
            self._sizes[name] = self._measure(name)
            self._since[name] = time.monotonic()
        (self.lists / name).touch()

    def _tell(self) -> None:
        """Let go of what this pod does not need any more, and tell the others what it uses."""
        in_use, now = self._in_use(), time.monotonic()
        with self.lock:
            for name in [name for name in self._sizes if f"sha256:{name}" not in in_use]:
                if self._since.get(name, now) + KEPT_SECONDS < now:
                    del self._sizes[name]
            self._sharing.use(self._sizes)
