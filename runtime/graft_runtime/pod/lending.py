"""Which requests wait for adapters, and which hold them. One event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Tier
from graft_runtime.pod.aliases import Alias
from graft_runtime.pod.catalogue import PATIENCE_SECONDS, Artifact, Residence
from graft_runtime.pod.leases import Lease
from graft_runtime.pod.mounting import Mounting


class Lending:
    """The leases of one pod's adapters, and the requests that wait for one.

    Args:
        find: a name → what answers under it now; raises GraftError where nothing can.
        mounting: mounts what is waited for.
        returned: called with each lease that has ended.
    """

    def __init__(
        self, find: Callable[[str], tuple[Alias, Artifact]], mounting: Mounting, returned: Callable[[Lease], None]
    ) -> None:
        self._find, self._mounting, self._returned = find, mounting, returned
        self._leases: set[Lease] = set()
        self._waiting: dict[str, asyncio.Event] = {}
        """By digest."""
        self._clock = 0
        self._one_group = asyncio.Lock()

    def of(self, alias: Alias) -> list[Lease]:
        """Return the leases under a name."""
        return [lease for lease in self._leases if lease.alias is alias]

    def wake(self, digest: str) -> None:
        """Have whoever waits for a version look again."""
        if (event := self._waiting.pop(digest, None)) is not None:
            event.set()

    async def acquire(self, names: Sequence[str], wait_seconds: float) -> tuple[Lease, ...]:
        """Wait until all of these are mounted and lend them to one request. See `Adapters.acquire`."""
        tiers = [self._find(name)[1].tier for name in names]
        try:
            async with asyncio.timeout(wait_seconds):
                if len(names) == 1 or not self._missing(names):
                    return await self._acquire(names, tiers)
                async with self._one_group:  # two, each with a place that the other waits for, would wait for ever
                    return await self._acquire(names, tiers)
        except TimeoutError:
            missing = ", ".join(f"`{artifact.name}` ({artifact.state.value})" for artifact in self._missing(names))
            raise GraftError(
                ErrorCode.LOADING,
                f"not mounted yet after {wait_seconds:g} s: {missing or 'adapters that were a moment ago'}",
                hint="try again",
                field="model",
            ) from None

    async def _acquire(self, names: Sequence[str], tiers: Sequence[Tier | None]) -> tuple[Lease, ...]:
        while missing := self._missing(names):
            artifacts = {artifact.digest: artifact for _, artifact in map(self._find, names)}
            self._mounting.check_places(artifacts.values())
            await self._turn_of(list(artifacts.values()), missing[0])
        return tuple(self._lend(*self._find(name), tier) for name, tier in zip(names, tiers, strict=True))

    async def _turn_of(self, artifacts: Sequence[Artifact], first: Artifact) -> None:
        """Wait for these until something has changed about the first."""
        loop = asyncio.get_running_loop()
        for artifact in artifacts:
            if not artifact.waiters:
                artifact.since = loop.time()
            artifact.waiters += 1
        self._mounting.advance()
        patience = loop.call_later(PATIENCE_SECONDS, self._mounting.advance)
        try:
            await self._waiting.setdefault(first.digest, asyncio.Event()).wait()
        finally:
            patience.cancel()
            for artifact in artifacts:
                artifact.waiters -= 1
            if self._mounting.short:
                self._mounting.advance()

    def _missing(self, names: Sequence[str]) -> list[Artifact]:
        """Return those that a request has to wait for. Raises GraftError where waiting is no use."""
        pairs = [self._find(name) for name in names]
        for alias, artifact in pairs:
            fault = alias.fault_of(alias.version, artifact) if alias.version is not None else None
            if fault is None and artifact.residence is not Residence.MOUNTED:
                fault = artifact.fault
            if fault is not None:
                raise fault.again()
        return [artifact for alias, artifact in pairs if not (artifact.lendable and alias.may_be_lent)]

    def _lend(self, alias: Alias, artifact: Artifact, tier: Tier | None) -> Lease:
        self._clock += 1
        artifact.last_used = self._clock
        artifact.users += 1
        lease = Lease(alias, artifact, tier, self._ended)
        self._leases.add(lease)
        return lease

    def _ended(self, lease: Lease) -> None:
        self._leases.discard(lease)
        lease.artifact.users -= 1
        self._returned(lease)
