"""Brings adapters to where they can be mounted: fetched, and checked as far as that goes without the base model."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from pathlib import Path

from graft_runtime.adapters.files import AdapterFiles, read_adapter_files
from graft_runtime.contract.checkpoints import Source
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.pod.catalogue import Artifact
from graft_runtime.store.cache import Cached
from graft_runtime.store.fetches import Fetches
from graft_runtime.threads import Threads
from graft_runtime.tokenizing.deadline import TookTooLongError, time_limit

logger = logging.getLogger(__name__)

CHECK_SECONDS = 30.0
"""For config and header of one adapter, which take well under a second."""

HighestToken = Callable[[Cached, str], Awaitable[int | None]]
"""Checks an adapter's own tokenizer and tells the highest id that it makes and the base's does not."""


class Preparations:
    """Those that are under way, one a version.

    Args:
        fetches: bring adapters into the cache.
        highest_token: reads their tokenizers.
        max_rank: of the pool.
    """

    def __init__(self, fetches: Fetches, highest_token: HighestToken, max_rank: int) -> None:
        self._fetches, self._highest_token, self._max_rank = fetches, highest_token, max_rank
        self._checking = Threads(1, "check")
        self._tasks: dict[str, asyncio.Task[None]] = {}

    def start(self, artifact: Artifact, source: Source, prepared: Callable[[Artifact], None]) -> None:
        """Prepare a version from this source, instead of any that it was being fetched from.

        Args:
            prepared: called once the artifact is prepared, and whenever it has a fault instead.
        """
        self.stop(artifact.digest)
        artifact.source, artifact.fault = source, None
        self._tasks[artifact.digest] = asyncio.create_task(self._prepare(artifact, prepared))

    def stop(self, digest: str) -> None:
        """Stop preparing a version, if that is under way."""
        if (task := self._tasks.pop(digest, None)) is not None:
            task.cancel()

    async def _prepare(self, artifact: Artifact, prepared: Callable[[Artifact], None]) -> None:
        def failed(error: GraftError) -> None:
            artifact.fault = error.again()
            prepared(artifact)

        name = artifact.name
        try:
            cached = await self._fetches.fetch_until_there(artifact.source, "adapter", artifact.digest, name, failed)
            if cached is None:
                return
            artifact.fault, artifact.cached, artifact.bytes = None, cached, cached.bytes
            files = await self._checking.run(_check_files, cached.directory, name, self._max_rank)
            artifact.highest_token = await self._highest_token(cached, name)
        except GraftError as error:
            logger.warning("%s", error)
            failed(error)
        except Exception as error:
            logger.exception("adapter `%s` can't be prepared", name)
            failed(
                GraftError(ErrorCode.INTERNAL, f"adapter `{name}` can't be prepared: {type(error).__name__}: {error}")
            )
        else:
            artifact.facts = files.facts
            prepared(artifact)


def _check_files(directory: Path, name: str, max_rank: int) -> AdapterFiles:
    try:
        with time_limit(CHECK_SECONDS):
            return read_adapter_files(directory, name=name, max_rank=max_rank)
    except TookTooLongError as error:
        what = f"the check of config and header of adapter `{name}` was ended: {error}"
        raise GraftError(ErrorCode.UNSAFE_FILE, what, hint="train it on fewer modules, with simpler patterns") from None
