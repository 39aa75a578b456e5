"""Which adapter set is in force, and where the last one is kept."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

from pydantic import ValidationError

from graft_runtime.contract.adapter_set import ADAPTER_SET_FILE, AdapterSet, AdapterSetVersion
from graft_runtime.durable import write_whole
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.threads import Threads

logger = logging.getLogger(__name__)

FOLLOW_MOUNTED_SECONDS = 10.0


def check_acceptable(new: AdapterSet, current: AdapterSet | None, pool_uid: str, config_hash: str) -> None:
    """Check that a set is for this pod and not older than the one in force.

    Raises:
        GraftError: WrongPool, StaleGeneration.
    """
    if (new.pool_uid, new.config_hash) != (pool_uid, config_hash):
        raise GraftError(
            ErrorCode.WRONG_POOL,
            f"the adapter set is for pool {new.pool_uid!r} with config {new.config_hash!r}, "
            f"expected {pool_uid!r} with {config_hash!r}",
            hint="push each pod the set of its own RuntimeConfig hash",
        )
    if current is None or new.generation > current.generation:
        return
    if new.generation < current.generation:
        raise GraftError(
            ErrorCode.STALE_GENERATION,
            f"the adapter set has generation {new.generation}, the one in force has {current.generation}",
            hint="read the pod's status and count on from there",
        )
    if new.content_hash() != current.content_hash():
        raise GraftError(
            ErrorCode.STALE_GENERATION,
            f"generation {new.generation} is in force with other content ({current.content_hash()})",
            hint="give other content a higher generation",
        )


class AdapterSets:
    """The set in force, and its copy in the state directory. Blocking.

    Args:
        mounted: the directory of the ConfigMap; may be empty or absent.
        state: the pod's own directory.
    """

    def __init__(self, pool_uid: str, config_hash: str, mounted: Path, state: Path) -> None:
        self._pool_uid, self._config_hash = pool_uid, config_hash
        self._mounted, self._state = mounted / ADAPTER_SET_FILE, state / ADAPTER_SET_FILE
        self.current: AdapterSet | None = None

    @property
    def version(self) -> AdapterSetVersion:
        """Return the version of the set in force: generation 0 when there is none."""
        if self.current is None:
            return AdapterSetVersion(generation=0)
        return AdapterSetVersion(generation=self.current.generation, hash=self.current.content_hash())

    def boot(self) -> AdapterSet | None:
        """Put the newer of the kept and the mounted set in force."""
        for path in (self._state, self._mounted):
            self._adopt(path)
        return self.current

    def follow_mounted(self) -> AdapterSet | None:
        """Adopt the mounted set if it is newer than the one in force, and return it; else None."""
        before = self.current
        self._adopt(self._mounted)
        return self.current if self.current is not before else None

    def accept(self, new: AdapterSet) -> bool:
        """Keep a set and put it in force. Return False when it was in force already.

        Raises:
            GraftError: WrongPool, StaleGeneration.
            OSError: it can't be kept.
        """
        check_acceptable(new, self.current, self._pool_uid, self._config_hash)
        if self.current is not None and new.generation == self.current.generation:
            return False
        write_whole(self._state, new.to_gzip())
        self.current = new
        return True

    def _adopt(self, path: Path) -> None:
        try:
            new = AdapterSet.from_gzip(path.read_bytes())
            if self.current is None or new.generation > self.current.generation:
                check_acceptable(new, self.current, self._pool_uid, self._config_hash)
                self.current = new
        except FileNotFoundError:
            return
        except (OSError, EOFError, ValueError, ValidationError, GraftError) as error:
            logger.warning("the adapter set in %s is not used: %s", path, error)


class SetInForce:
    """Puts sets in force, one at a time; their files are read and written in threads. One event loop.

    Args:
        kept: the sets of the pod.
        put_in_force: called with each set that is in force from then on.
    """

    def __init__(self, kept: AdapterSets, put_in_force: Callable[[AdapterSet], None]) -> None:
        self._kept, self._put_in_force = kept, put_in_force
        self._lock = asyncio.Lock()
        self._thread = Threads(1, "sets")

    @property
    def version(self) -> AdapterSetVersion:
        """Return the version of the set in force: generation 0 when there is none."""
        return self._kept.version

    async def boot(self) -> None:
        """Begin with the newer of the kept and the mounted set, if there is one."""
        async with self._lock:
            if (newest := await self._thread.run(self._kept.boot)) is not None:
                self._put_in_force(newest)

    async def follow_mounted(self) -> NoReturn:
        """Put newer mounted sets in force, for a pod whose ConfigMap came late, or that nobody reaches."""
        while True:
            await asyncio.sleep(FOLLOW_MOUNTED_SECONDS)
            async with self._lock:
                newer = await self._thread.run(self._kept.follow_mounted)
                if newer is not None:
                    self._put_in_force(newer)

    async def accept(self, adapter_set: AdapterSet) -> AdapterSetVersion:
        """Put a pushed set in force; it is kept before this returns.

        Raises:
            GraftError: WrongPool, StaleGeneration.
        """
        async with self._lock:
            if await self._thread.run(self._kept.accept, adapter_set):
                self._put_in_force(adapter_set)
            return self._kept.version
