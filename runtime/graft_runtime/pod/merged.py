"""Merged mode: waits for the set to name the digests of the merge, fetches and checks them, reports how far they are.

What a pod has merged stays until it ends. A set that names other digests later changes nothing but the reports.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence

from graft_runtime.adapters.files import AdapterFiles, read_adapter_files
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.config import Merge, MergePart
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport, AdapterState
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseLoaded, MergeSource, Tier
from graft_runtime.pod.adapters import AdapterEvent, AskVersion, NamedAdapters
from graft_runtime.pod.leases import Lease, unknown_model
from graft_runtime.store.fetches import Fetches

logger = logging.getLogger(__name__)

Digests = Mapping[str, str]
"""By the name of the adapter."""


class MergedAdapters:
    """The adapters in the base's weights: see `Adapters`.

    Args:
        config: what is to be merged.
        fetches: bring the adapters into the cache.
        max_rank: of the pool.
        changed: called with a name whenever its report may differ.
    """

    def __init__(self, config: Merge, fetches: Fetches, max_rank: int, changed: Callable[[str], None]) -> None:
        self._config, self._fetches, self._max_rank, self._changed = config, fetches, max_rank, changed
        self._parts = {part.name: part for part in config.adapters}
        self._entries: dict[str, AdapterEntry] = {}
        self._fetched: dict[str, AdapterFiles] = {}
        """Of adapters in the cache, their config and header checked."""
        self._faults: dict[str, GraftError] = {}
        self._news = asyncio.Event()
        self._used: Digests = {}
        """What goes into the base, or went; empty while it may still change."""
        self._done = False
        self._facts: Mapping[str, AdapterFacts] = {}
        self.digests: frozenset[str] = frozenset()
        """All that the cache must keep. Read by other threads."""

    def answer_checks(self, asking: Callable[[NamedAdapters], AskVersion]) -> None:
        """Check nothing: the merge is served, and no adapter by itself."""

    def apply(self, adapter_set: AdapterSet) -> None:
        """Put an adapter set in force; entries of other adapters, or of other sources, are none of this merge."""
        self._entries = {
            entry.name: entry
            for entry in adapter_set.adapters
            if entry.name in self._parts and entry.source == self._parts[entry.name].source
        }
        self.digests = frozenset({*self._used.values(), *(e.digest for e in self._entries.values() if e.digest)})
        self._news.set()
        self._tell()

    async def merge_sources(self, failed: Callable[[GraftError], None]) -> tuple[MergeSource, ...]:
        """Return what to merge, in the cache and checked as far as files can be; wait for the set, and for sources."""
        while True:
            self._news.clear()
            digests = self._wanted(failed)
            if digests is not None and await self._fetch_unless_news(digests, failed):
                self._used = digests
                return tuple(
                    MergeSource(part, str(self._fetched[part.name].directory)) for part in self._config.adapters
                )
            await self._news.wait()

    def base_loaded(self, loaded: BaseLoaded) -> None:
        """Report all of it as merged from now on."""
        self._done, self._facts = True, dict(zip(self._parts, loaded.merged, strict=True))
        self._tell()

    def base_failed(self, error: GraftError) -> None:
        """Report the base's fault as that of every adapter in it."""
        self._faults = dict.fromkeys(self._parts, error.again())
        self._tell()

    @property
    def default_model(self) -> str:
        """Return the merge's name: the only model of this pod."""
        return self._config.name

    @property
    def merged_digest(self) -> str:
        """Return the digests in the base's weights, in the order of the merge."""
        return ", ".join(self._used[name] for name in self._parts)

    def is_served(self, name: str) -> bool:
        """Return False: requests name the merge, not what is in it."""
        return False

    def share(self, name: str) -> int:
        """Return 1: there is one name."""
        return 1

    def unknown(self, name: str, field: str = "model") -> GraftError:
        """Return the 404 for any name but that of the merge."""
        merge = self._config.name
        hint = f"this pool serves its merge alone, as `{merge}`; remove spec.merge to serve adapters by name"
        return unknown_model(name, field, hint=hint)

    def is_settled(self, entry: AdapterEntry) -> bool:
        """Tell whether it is in the base, or has a fault."""
        report = self.report(entry.name)
        return report is not None and (report.ready or report.fault is not None)

    def tier(self, name: str) -> Tier | None:
        """Return None: no adapter is anywhere by itself."""
        return None

    async def acquire(self, names: Sequence[str], wait_seconds: float) -> tuple[Lease, ...]:
        """Raise GraftError, UnknownModel: nothing is lent."""
        raise self.unknown(names[0])

    def on_event(self, event: AdapterEvent) -> None:
        """Ignore the event: nothing is mounted."""

    @property
    def merged(self) -> Merge | None:
        """Return what is in the base; None before the base serves."""
        if not self._done:
            return None
        parts = [part.model_copy(update={"digest": self._used[part.name]}) for part in self._config.adapters]
        return self._config.model_copy(update={"adapters": tuple(parts)})

    def names(self) -> Iterator[str]:
        """Iterate over the adapters in the set that are part of the merge, in its order."""
        return (name for name in self._parts if name in self._entries)

    def report(self, name: str) -> AdapterReport | None:
        """Return what is true of an adapter of the merge; None for any other."""
        entry = self._entries.get(name)
        if entry is None:
            return None
        fault = self._fault(entry)
        files = self._fetched.get(name)
        return AdapterReport(
            name=name,
            digest=entry.digest,
            revision=entry.revision or entry.source.revision,
            state=AdapterState.FAILED if fault is not None else self._state(entry),
            fault=fault,
            facts=self._facts.get(name) or (files.facts if files is not None else None),
            bytes=files.bytes if files is not None else None,
        )

    def _state(self, entry: AdapterEntry) -> AdapterState:
        if entry.digest is None:
            return AdapterState.UNRESOLVED
        if self._done:
            return AdapterState.MERGED
        return AdapterState.CHECKING if entry.name in self._fetched else AdapterState.FETCHING

    def _fault(self, entry: AdapterEntry) -> Fault | None:
        used = self._used.get(entry.name)
        if used is not None and entry.digest is not None and entry.digest != used:
            return Fault.of(_outdated(entry, used))
        fault = self._faults.get(entry.name)
        return Fault.of(fault) if fault is not None else entry.fault if not self._used else None

    # on the way to the base

    def _wanted(self, failed: Callable[[GraftError], None]) -> Digests | None:
        """Return the digests; None, and why to `failed`, where the set does not name all."""
        for part in self._config.adapters:
            entry = self._entries.get(part.name)
            if entry is not None and entry.fault is not None and entry.digest is None:
                failed(GraftError(entry.fault.code, f"`{part.name}` can't be merged: {entry.fault.message}"))
                return None
        digests = self._digests_of_set()
        unknown = [name for name, digest in digests.items() if digest is None]
        if unknown:
            names = ", ".join(f"`{name}`" for name in unknown)
            failed(GraftError(ErrorCode.RESOLVING, f"the adapter set names no digest yet of {names}, to be merged"))
            return None
        return {name: digest for name, digest in digests.items() if digest is not None}

    def _digests_of_set(self) -> Mapping[str, str | None]:
        entries = {name: self._entries.get(name) for name in self._parts}
        return {name: entry.digest if entry is not None else None for name, entry in entries.items()}

    async def _fetch_unless_news(self, digests: Digests, failed: Callable[[GraftError], None]) -> bool:
        """Fetch all. Return False when that is no use, or another set came first."""
        fetching = asyncio.create_task(self._fetch(digests, failed))
        news = asyncio.create_task(self._other_digests(digests))
        try:
            await asyncio.wait({fetching, news}, return_when=asyncio.FIRST_COMPLETED)
            return not news.done() and fetching.result()
        finally:
            for task in (fetching, news):
                task.cancel()
                with contextlib.suppress(asyncio.CancelledError):
                    await task

    async def _other_digests(self, digests: Digests) -> None:
        while self._digests_of_set() == digests:
            self._news.clear()
            await self._news.wait()
        self._news.set()

    async def _fetch(self, digests: Digests, failed: Callable[[GraftError], None]) -> bool:
        self._fetched, self._faults = {}, {}
        fetched = await asyncio.gather(
            *(self._fetch_one(part, digests[part.name], failed) for part in self._parts.values())
        )
        return all(fetched)

    async def _fetch_one(self, part: MergePart, digest: str, failed: Callable[[GraftError], None]) -> bool:
        def refuse(error: GraftError) -> None:
            self._faults[part.name] = error.again()
            self._changed(part.name)
            failed(error)

        entry = self._entries.get(part.name)
        wanted = entry.wanted if entry is not None else None
        source = wanted.exact_source if wanted is not None else part.source
        cached = await self._fetches.fetch_until_there(source, "adapter", digest, part.name, refuse)
        if cached is None:
            return False
        try:
            files = await asyncio.to_thread(
                read_adapter_files, cached.directory, name=part.name, max_rank=self._max_rank
            )
        except GraftError as error:
            logger.warning("%s", error)
            refuse(error)
            return False
        self._faults.pop(part.name, None)
        self._fetched[part.name] = files
        self._changed(part.name)
        return True

    def _tell(self) -> None:
        for name in self._parts:
            self._changed(name)


def _outdated(entry: AdapterEntry, used: str) -> GraftError:
    return GraftError(
        ErrorCode.MERGE_OUTDATED,
        f"adapter `{entry.name}` is merged as {used}, and the adapter set names {entry.digest} by now",
        hint="what is merged can't be changed in place: delete the pod, and the next one merges the new version",
    )
