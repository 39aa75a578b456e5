"""Hot mode: adapters beside the base, fetched, checked and mounted, and lent to requests. One event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator, Sequence

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import AdapterReport, MergeReport
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    BaseLoaded,
    Command,
    Dropped,
    MergeSource,
    Mount,
    Mounted,
    MountFailed,
    Tier,
    Unmount,
    Unmounted,
)
from graft_runtime.pod.catalogue import (
    PATIENCE_SECONDS,
    Alias,
    Artifact,
    Residence,
    Step,
    check_places,
    no_place,
    plan_mounts,
    report,
    scale_fault,
)
from graft_runtime.pod.leases import Lease, unknown_model
from graft_runtime.pod.preparations import HighestToken, Preparations
from graft_runtime.store.fetches import Fetches

logger = logging.getLogger(__name__)

RETRY_MOUNT_SECONDS = 30.0


class HotAdapters:
    """The adapters of one pod: see `Adapters`.

    Args:
        fetches: bring them into the cache.
        send: hands a command to the engine.
        highest_token: reads their tokenizers.
        limit: how many the engine can hold.
        max_rank: of the pool.
        drain_seconds: how long requests may go on under a name that was removed.
        changed: called with a name whenever its report may differ.
    """

    default_model: str | None = None
    merged_digest: str | None = None
    merged: MergeReport | None = None

    def __init__(
        self,
        fetches: Fetches,
        send: Callable[[Command], None],
        highest_token: HighestToken,
        *,
        limit: int,
        max_rank: int,
        drain_seconds: float,
        changed: Callable[[str], None],
    ) -> None:
        self._preparations = Preparations(fetches, highest_token, max_rank=max_rank, told=self._prepared)
        self._send = send
        self._limit, self._drain_seconds = limit, drain_seconds
        self._changed = changed
        self._aliases: dict[str, Alias] = {}
        self._draining: dict[str, Alias] = {}
        self._artifacts: dict[str, Artifact] = {}
        self._names: dict[str, list[str]] = {}
        """By digest, of those that point to it."""
        self._leases: set[Lease] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        self._clock, self._turns = 0, 0
        self._rows: int | None = None
        """Token ids that the base has; None before it is loaded."""
        self._advancing = False
        self._short = False
        """Somebody waits for a place."""
        self._one_group = asyncio.Lock()
        self.digests: frozenset[str] = frozenset()
        """All that the cache must keep. Read by other threads."""

    def apply(self, adapter_set: AdapterSet) -> None:
        """Puts an adapter set in force."""
        entries = {entry.name: entry for entry in adapter_set.adapters}
        for name in [name for name in self._aliases if name not in entries]:
            self._remove(self._aliases.pop(name))
        for entry in entries.values():
            alias = self._aliases.setdefault(entry.name, Alias(entry))
            alias.entry = entry
            if entry.digest is None:
                alias.serving = None
        for artifact in self._artifacts.values():
            unpinned = artifact.fault is not None and artifact.fault.code is ErrorCode.ALL_PLACES_PINNED
            if artifact.may_mount_again or unpinned:  # unless the set pins too many again
                artifact.fault = None
        self._refresh()
        for name in entries:
            self._changed(name)

    async def merge_sources(self, failed: Callable[[GraftError], None]) -> tuple[MergeSource, ...]:
        """Return nothing: the base stays as it is."""
        return ()

    def base_loaded(self, loaded: BaseLoaded) -> None:
        """Begin to mount."""
        self._rows = loaded.vocabulary_size
        self._advance()

    def base_failed(self, error: GraftError) -> None:
        """Mount nothing, ever; the fault is the base's alone."""

    def names(self) -> Iterator[str]:
        """Iterate over the catalogue, in its order."""
        return iter(tuple(self._aliases))

    served = names

    def is_served(self, name: str) -> bool:
        """Return whether the catalogue has this name."""
        return name in self._aliases

    def unknown(self, name: str, field: str = "model") -> GraftError:
        """Return the 404 for a name that is not in the catalogue."""
        return unknown_model(name, field, hint="GET /v1/models lists what is; add it to spec.adapters to serve it")

    def report(self, name: str) -> AdapterReport | None:
        """What is true of a name; None when it is gone."""
        alias = self._aliases.get(name) or self._draining.get(name)
        if alias is None:
            return None
        digest, candidate = alias.entry.digest, alias.entry.candidate
        return report(alias, self._artifacts.get(digest or ""), self._artifacts.get(candidate or ""))

    def tier(self, name: str) -> Tier | None:
        """Where what answers under a name is; None: in no tier yet, or no such name."""
        alias = self._aliases.get(name)
        artifact = self._artifacts.get(alias.serving or alias.entry.digest or "") if alias is not None else None
        return artifact.tier if artifact is not None else None

    async def acquire(self, names: Sequence[str], wait_seconds: float) -> tuple[Lease, ...]:
        """Mounted adapters for one request, in this order; waits until all are mounted.

        Raises:
            GraftError: UnknownModel, Resolving, Loading, NotComposable, or the own fault of one of them.
        """
        found = [self._find(name)[1].tier for name in names]
        try:
            async with asyncio.timeout(wait_seconds):
                if len(names) == 1 or not self._missing(names):
                    return await self._acquire(names, found)
                async with self._one_group:  # two, each with a place that the other waits for, would wait for ever
                    return await self._acquire(names, found)
        except TimeoutError:
            missing = ", ".join(f"`{artifact.name}` ({artifact.state.value})" for artifact in self._missing(names))
            raise GraftError(
                ErrorCode.LOADING,
                f"not mounted yet after {wait_seconds:g} s: {missing or 'adapters that were a moment ago'}",
                hint="try again",
                field="model",
            ) from None

    async def _acquire(self, names: Sequence[str], found: Sequence[Tier | None]) -> tuple[Lease, ...]:
        while missing := self._missing(names):
            artifacts = {artifact.digest: artifact for _, artifact in map(self._find, names)}
            check_places(artifacts, self._artifacts.values(), self._limit)
            await self._turn_of(list(artifacts.values()), missing[0])
        return tuple(self._lend(*self._find(name), tier) for name, tier in zip(names, found, strict=True))

    async def _turn_of(self, artifacts: Sequence[Artifact], first: Artifact) -> None:
        """Waits for these until something has changed about the first."""
        loop = asyncio.get_running_loop()
        for artifact in artifacts:
            if not artifact.waiters:
                artifact.since = loop.time()
            artifact.waiters += 1
        self._advance()
        patience = loop.call_later(PATIENCE_SECONDS, self._advance)
        try:
            await self._waiting.setdefault(first.digest, asyncio.Event()).wait()
        finally:
            patience.cancel()
            for artifact in artifacts:
                artifact.waiters -= 1
            if self._short:
                self._advance()

    def _missing(self, names: Sequence[str]) -> list[Artifact]:
        """Those that a request has to wait for. Raises GraftError where waiting is no use."""
        found = [self._find(name) for name in names]
        for alias, artifact in found:
            fault = scale_fault(alias.entry, artifact)
            if fault is None and artifact.residence is not Residence.MOUNTED:
                fault = artifact.fault
            if fault is not None:
                raise fault
        return [artifact for _, artifact in found if not artifact.lendable]

    def on_event(self, event: Mounted | MountFailed | Unmounted | Dropped) -> None:
        """Takes what the engine tells."""
        for digest in event.digests if isinstance(event, Dropped) else ():
            if (artifact := self._artifacts.get(digest)) is not None:
                artifact.in_host = False
        if not isinstance(event, Dropped) and (artifact := self._artifacts.get(event.digest)) is not None:
            self._moved(artifact, event)

    def _moved(self, artifact: Artifact, event: Mounted | MountFailed | Unmounted) -> None:
        match event:
            case Mounted() if artifact.residence is not Residence.UNMOUNTING:
                self._mounted(artifact, event)
            case MountFailed():
                self._mount_failed(artifact, event.fault.error())
            case Unmounted() if artifact.residence is Residence.UNMOUNTING:
                artifact.residence, artifact.in_host = Residence.ABSENT, event.tier == "host"
        left_behind = [self._switch(self._aliases[name]) for name in self._names.get(artifact.digest, ())]
        if not artifact.wanted or any(left_behind):
            self._refresh()
        else:
            self._advance()
        self._touched(artifact)

    # aliases and artifacts

    def _find(self, name: str) -> tuple[Alias, Artifact]:
        alias = self._aliases.get(name)
        if alias is None:
            raise GraftError(ErrorCode.UNKNOWN_MODEL, f"`{name}` is not served here any more", field="model")
        fault = alias.entry.fault
        if alias.entry.digest is None and fault is not None:
            raise GraftError(fault.code, fault.message, field="model")
        if alias.entry.digest is None:
            raise GraftError(
                ErrorCode.RESOLVING,
                f"the exact version of adapter `{name}` is not known yet",
                hint="try again; the AdapterDeployment's status says more",
                field="model",
            )
        return alias, self._artifacts[alias.serving or alias.entry.digest]

    def _remove(self, alias: Alias) -> None:
        alias.removed = True
        name = alias.entry.name
        if any(lease.alias is alias for lease in self._leases):
            self._draining[name] = alias
            asyncio.get_running_loop().call_later(self._drain_seconds, self._revoke, alias)
        self._changed(name)

    def _revoke(self, alias: Alias) -> None:
        for lease in [lease for lease in self._leases if lease.alias is alias]:
            lease.revoke()

    def _refresh(self) -> None:
        """Brings the artifacts in line with the names, switches names whose new version is ready, and goes on."""
        self._names = {}
        for name, alias in self._aliases.items():
            self._switch(alias)
            for digest in {alias.serving, alias.entry.digest, alias.entry.candidate} - {None}:
                self._names.setdefault(str(digest), []).append(name)
        for digest, names in self._names.items():
            entries = [self._aliases[name].entry for name in names]
            artifact = self._artifacts.get(digest) or self._add(digest, entries[0].exact_source, entries[0].name)
            if artifact.cached is None and artifact.source not in [entry.exact_source for entry in entries]:
                self._preparations.start(artifact, entries[0].exact_source)
            artifact.wanted = True
            artifact.pinned = any(entry.pinned and digest == entry.digest for entry in entries)
        for digest in [digest for digest in self._artifacts if digest not in self._names]:
            self._let_go(self._artifacts[digest])
        self.digests = frozenset(self._artifacts)
        self._advance()

    def _switch(self, alias: Alias) -> bool:
        """Lets a name be answered by its new version when that is ready. True when an old one is left behind."""
        new, old = self._artifacts.get(alias.entry.digest or ""), alias.serving
        if new is None or not new.proven or old == new.digest or scale_fault(alias.entry, new) is not None:
            return False
        alias.serving = new.digest
        if old is None:
            return False
        logger.info("`%s` is answered by %s from now on", alias.entry.name, new.digest)
        self._wake(old)
        return True

    def _add(self, digest: str, source: Source, name: str) -> Artifact:
        artifact = self._artifacts[digest] = Artifact(digest, source, name)
        self._preparations.start(artifact, source)
        return artifact

    def _let_go(self, artifact: Artifact) -> None:
        artifact.wanted, artifact.pinned = False, False
        if artifact.residence is Residence.ABSENT and not artifact.users:
            del self._artifacts[artifact.digest]
            if artifact.in_host:
                self._send(Unmount(artifact.digest))
            self._preparations.stop(artifact.digest)
            self._wake(artifact.digest)

    def _prepared(self, artifact: Artifact) -> None:
        self._touched(artifact)
        self._advance()

    # mounting

    def _advance(self) -> None:
        """Mounts and unmounts what is to be, once for all that happens at the same time."""
        if self._rows is not None and not self._advancing:
            self._advancing = True
            asyncio.get_running_loop().call_soon(self._mount_next)

    def _mount_next(self) -> None:
        self._advancing = False
        plan = plan_mounts(self._artifacts.values(), self._limit, asyncio.get_running_loop().time())
        self._short = plan.short
        for step in plan.steps:
            artifact = self._artifacts[step.digest]
            self._take(step, artifact)
            self._touched(artifact)

    def _take(self, step: Step, artifact: Artifact) -> None:
        match step.action:
            case "mount":
                assert artifact.cached is not None
                self._turns += 1
                artifact.residence, artifact.turn = Residence.MOUNTING, self._turns
                self._send(Mount(artifact.digest, str(artifact.cached.directory), artifact.name))
            case "unmount":
                artifact.residence, artifact.in_host = Residence.UNMOUNTING, artifact.wanted
                self._send(Unmount(artifact.digest, keep=artifact.wanted))
            case "yield" | "stay":
                artifact.yielding = step.action == "yield"
            case "refuse":
                artifact.fault = no_place(artifact.name, self._limit)

    def _mounted(self, artifact: Artifact, event: Mounted) -> None:
        assert self._rows is not None
        artifact.mounted(event, self._rows)
        if artifact.fault is not None:
            logger.warning("%s", artifact.fault)
            self._send(Unmount(artifact.digest))

    def _mount_failed(self, artifact: Artifact, error: GraftError) -> None:
        logger.warning("%s", error)
        artifact.residence = Residence.ABSENT
        artifact.fault = error
        if error.code.retried:
            asyncio.get_running_loop().call_later(RETRY_MOUNT_SECONDS, self._mount_again, artifact)

    def _mount_again(self, artifact: Artifact) -> None:
        if artifact.may_mount_again:
            artifact.fault = None
            self._touched(artifact)
            self._advance()

    def _lend(self, alias: Alias, artifact: Artifact, found: Tier | None) -> Lease:
        self._clock += 1
        artifact.last_used = self._clock
        artifact.users += 1
        lease = Lease(alias, artifact, found, self._returned)
        self._leases.add(lease)
        return lease

    def _returned(self, lease: Lease) -> None:
        self._leases.discard(lease)
        lease.artifact.users -= 1
        name = lease.alias.entry.name
        if self._draining.get(name) is lease.alias and not any(other.alias is lease.alias for other in self._leases):
            del self._draining[name]
            self._changed(name)
        if not lease.artifact.wanted:
            self._refresh()
        elif self._short:
            self._advance()

    def _touched(self, artifact: Artifact) -> None:
        for name in self._names.get(artifact.digest, ()):
            self._changed(name)
        self._wake(artifact.digest)

    def _wake(self, digest: str) -> None:
        """Whoever waits for this version looks again."""
        if (event := self._waiting.pop(digest, None)) is not None:
            event.set()
