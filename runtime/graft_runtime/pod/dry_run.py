"""A dry run of an adapter: all that comes before a mount."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path

from graft_runtime.adapters.vocabulary import vocabulary_fault
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.control import AdapterInspection, Check
from graft_runtime.errors import GraftError
from graft_runtime.inspection import inspect_adapter, passed, refused
from graft_runtime.one_shot import run_once
from graft_runtime.pod.base_life import BaseLife, LoadedBase
from graft_runtime.pod.preparations import HighestToken
from graft_runtime.store.cache import Cached
from graft_runtime.store.fetches import Fetches

INSPECTION_SECONDS = 300.0


KEPT_SECONDS = 60.0
"""A result waits so long for whoever gave up waiting for it, and asks again."""


@dataclass(frozen=True)
class DryRun:
    """Dry runs on one pod, beside what it serves; one at a time."""

    fetches: Fetches
    base: BaseLife
    highest_token: HighestToken
    max_rank: int
    _lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    _running: dict[tuple[str, str], asyncio.Task[AdapterInspection]] = field(default_factory=dict)
    """By digest and URI; the finished ones for KEPT_SECONDS."""

    async def inspect(self, source: Source) -> AdapterInspection:
        """Fetch an adapter and check it as far as a mount would.

        Raises:
            GraftError: what `Fetches.resolve` raises.
        """
        cached = await self.fetches.resolve(source, "adapter")
        inspection = await asyncio.to_thread(inspect_adapter, cached.directory, name=source.uri, max_rank=self.max_rank)
        if inspection.fault is not None:
            return inspection
        try:
            base = self.base.serving()
            inspection = await self._shared(base, cached, source.uri)
            if inspection.fault is not None or Check.TOKENIZER not in inspection.unchecked:
                return inspection
            highest = await self.highest_token(cached, source.uri)  # the base's tokenizer had to be converted
        except GraftError as error:
            return refused(inspection, error)
        own_rows = inspection.facts.vocabulary_size if inspection.facts is not None else None
        fault = vocabulary_fault(source.uri, highest, own_rows, base.loaded.vocabulary_size)
        return passed(inspection, Check.TOKENIZER) if fault is None else refused(inspection, fault)

    async def _shared(self, base: LoadedBase, adapter: Cached, name: str) -> AdapterInspection:
        """Look at an adapter, or join who does: whoever gives up waiting does not end it."""
        key = (adapter.digest, name)
        task = self._running.get(key)
        if task is None:
            task = self._running[key] = asyncio.create_task(self._in_child(base, adapter.directory, name))
            later = asyncio.get_running_loop().call_later
            task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
            task.add_done_callback(lambda _: later(KEPT_SECONDS, self._running.pop, key, None))
        return await asyncio.shield(task)

    async def _in_child(self, base: LoadedBase, adapter: Path, name: str) -> AdapterInspection:
        """Have `graft-runtime inspect` look at the adapter: that takes torch, and reads all of its values."""
        loaded = base.loaded
        options = {"--base": str(base.cached.directory), "--task": loaded.task, "--dtype": loaded.dtype, "--name": name}
        arguments = [part for option in options.items() for part in option]
        arguments += ["--max-rank", str(self.max_rank), "--values", "--output", "json"]
        what = f"the dry run of {name}"
        command = ["-m", "graft_runtime", "inspect", str(adapter), *arguments]
        async with self._lock:
            return await run_once(command, AdapterInspection.read, what=what, seconds=INSPECTION_SECONDS)
