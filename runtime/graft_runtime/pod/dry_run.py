"""A dry run of an adapter: all that comes before a mount."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass

from graft_runtime.adapters.vocabulary import vocabulary_fault
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.control import AdapterInspection, Check
from graft_runtime.errors import GraftError
from graft_runtime.inspection import inspect_adapter, passed, refused
from graft_runtime.pod.base_life import BaseLife
from graft_runtime.pod.engine_client import EngineClient
from graft_runtime.pod.preparations import HighestToken
from graft_runtime.store.fetches import Fetches


@dataclass(frozen=True)
class DryRun:
    """Dry runs on one pod, beside what it serves."""

    fetches: Fetches
    engine: EngineClient
    base: BaseLife
    highest_token: HighestToken
    max_rank: int

    async def inspect(self, source: Source) -> AdapterInspection:
        """Fetch an adapter and check it as far as a mount would.

        Raises:
            GraftError: what `Fetches.resolve` raises.
        """
        cached = await self.fetches.resolve(source, "adapter")
        found = await asyncio.to_thread(inspect_adapter, cached.directory, name=source.uri, max_rank=self.max_rank)
        if found.fault is not None:
            return found
        await self.engine.started()
        try:
            inspected = await self.engine.inspect(str(cached.directory), source.uri)
            found = passed(found, Check.BASE, Check.VALUES).model_copy(update={"facts": inspected.facts})
            base = self.base.serving()  # a tokenizer is judged beside its base's
            highest = await self.highest_token(cached, source.uri)
        except GraftError as error:
            return refused(found, error)
        assert inspected.facts is not None, "it has no fault"
        fault = vocabulary_fault(source.uri, highest, inspected.facts.vocabulary_size, base.loaded.vocabulary_size)
        return passed(found, Check.TOKENIZER) if fault is None else refused(found, fault)
