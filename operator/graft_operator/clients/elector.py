"""Takes and keeps the Lease, so that of several operators one writes."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable

from graft_operator import metrics
from graft_operator.clients.cluster import Cluster, ClusterError, ConflictError
from graft_operator.clients.fence import Fence
from graft_operator.decisions.conditions import timestamp
from graft_operator.decisions.leases import WRITES_UNTIL, LeaseView, Sighting, read_lease
from graft_operator.keys import ObjectKey
from graft_operator.kinds import LEASE
from graft_operator.objects import build_event, build_lease
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

LOOKS = 15
"""Of one that waits, in the duration of a Lease."""
RENEWALS = 6
"""In the duration of a Lease."""
TRY_PART = 1 / 3
"""What one try may take of the duration of a Lease."""


class LeaseLostError(Exception):
    """Another operator may lead by now: this process must end."""


class Elector:
    """One candidate for the Lease.

    Args:
        cluster: a connection of its own, which the fence does not close.
        fence: is open as long as this operator leads.
        identity: names this process; another one of the same name must not run at the same time.
        clock: seconds that only grow.
        unix_clock: Unix seconds, for those who read the Lease.
    """

    def __init__(
        self,
        cluster: Cluster,
        fence: Fence,
        settings: Settings,
        identity: str,
        *,
        clock: Callable[[], float] = time.monotonic,
        unix_clock: Callable[[], float] = time.time,
    ) -> None:
        self._cluster = cluster
        self._fence = fence
        self._about = ObjectKey(LEASE.name, settings.namespace, settings.lease)
        self._seconds = settings.lease_seconds
        self._identity = identity
        self._clock = clock
        self._unix_clock = unix_clock
        self._acquired = 0.0
        self._transitions = 0
        self._held: LeaseView | None = None
        self.waits = False
        """Whether another operator leads and this one stands by."""

    async def lead(self) -> None:
        """Wait until this operator leads."""
        seen: Sighting | None = None
        while True:
            try:
                async with asyncio.timeout(self._seconds * TRY_PART):
                    lease = await self._read()
                    now = self._clock()
                    seen = Sighting(lease, now) if seen is None else seen.again(lease, now)
                    if seen.may_take(self._identity, now):
                        await self._take(lease)
                        break
                self._stand_by(lease)
            except ConflictError:
                continue  # another one was faster
            except (ClusterError, TimeoutError) as error:
                logger.warning("the lease %s can't be had yet: %s", self._about.name, error or "no answer in time")
            await asyncio.sleep(self._seconds / LOOKS)
        self.waits = False
        metrics.LEADING.set(1)
        logger.info("%s leads", self._identity)
        await self._tell()

    async def keep(self) -> None:
        """Renew the Lease for ever.

        Raises:
            LeaseLostError: another one has it, or it could not be renewed in time.
        """
        while True:
            await asyncio.sleep(min(self._seconds / RENEWALS, self._fence.seconds_left))
            left = self._fence.seconds_left
            if left <= 0:
                raise self._lost("could not be renewed in time")
            try:
                async with asyncio.timeout(min(left, self._seconds * TRY_PART)):
                    await self._renew()
            except ClusterError as error:
                logger.warning("the lease %s was not renewed: %s", self._about.name, error)
            except TimeoutError:
                logger.warning("the lease %s was not renewed: no answer in time", self._about.name)

    async def release(self) -> None:
        """Give the Lease back, so that another one may lead at once. Nothing may be written after it."""
        led = self._fence.seconds_left > 0
        self._fence.close()
        metrics.LEADING.set(0)
        if led and self._held is not None:
            try:
                await self._write(self._held, holder=None, seconds=1)
            except ClusterError as error:
                logger.info("the lease %s was not given back: %s", self._about.name, error)

    async def _renew(self) -> None:
        try:
            await self._extend(self._held)
        except ConflictError:
            lease = await self._read()
            if lease is not None and lease.holder != self._identity:
                raise self._lost(f"is held by {lease.holder or 'nobody'}") from None
            await self._extend(lease)  # it was changed or deleted by somebody who is no candidate

    async def _take(self, lease: LeaseView | None) -> None:
        self._acquired = self._unix_clock()
        self._transitions = 0 if lease is None else lease.transitions + (lease.holder != self._identity)
        await self._extend(lease)

    async def _extend(self, lease: LeaseView | None) -> None:
        begin = self._clock()
        self._held = await self._write(lease, holder=self._identity, seconds=self._seconds)
        self._fence.open_until(begin + self._seconds * WRITES_UNTIL)

    async def _read(self) -> LeaseView | None:
        return read_lease(await self._cluster.get(*self._about))

    async def _write(self, lease: LeaseView | None, *, holder: str | None, seconds: int) -> LeaseView | None:
        """Write the Lease as it was seen.

        Raises:
            ConflictError: it has changed since then. ClusterError
        """
        body = build_lease(
            self._about.namespace,
            self._about.name,
            holder=holder,
            seconds=seconds,
            acquired=self._acquired,
            renewed=self._unix_clock(),
            transitions=self._transitions,
        )
        uid, version = (None, None) if lease is None else (lease.uid, lease.resource_version)
        return read_lease(await self._cluster.apply(body, uid=uid, resource_version=version))

    def _stand_by(self, lease: LeaseView | None) -> None:
        if not self.waits and lease is not None:
            logger.info("%s stands by: %s leads", self._identity, lease.holder)
            self.waits = True

    def _lost(self, why: str) -> LeaseLostError:
        self._fence.close()
        metrics.LEADING.set(0)
        return LeaseLostError(f"the lease {self._about.namespace}/{self._about.name} {why}")

    async def _tell(self) -> None:
        if self._held is None:
            return
        event = build_event(
            self._about,
            self._held.uid,
            kind="Normal",
            reason="LeaderElection",
            message=f"{self._identity} leads",
            at=timestamp(self._unix_clock()),
        )
        try:
            await self._cluster.create(event)
        except ClusterError as error:
            logger.warning("the event LeaderElection was not written: %s", error)
