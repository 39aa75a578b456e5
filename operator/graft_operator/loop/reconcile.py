"""One pass over one pool: observe, plan, apply, report. Level-triggered: a pass needs no memory of what caused it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import InitVar, dataclass

from graft_operator import metrics
from graft_operator.clients.cluster import Cluster, UnavailableError
from graft_operator.clients.followers import PodFollowers
from graft_operator.clients.introductions import Introductions
from graft_operator.clients.resolutions import Resolutions
from graft_operator.clients.shares import Pace
from graft_operator.decisions.observed import Failure, Observed, PoolView, applied_hash
from graft_operator.decisions.plan import Plan, make_plan, reports_without_pool
from graft_operator.keys import PoolKey
from graft_operator.loop.effects import EffectFailedError, Effects, PoolMemory
from graft_operator.loop.events import Events
from graft_operator.loop.queue import WorkQueue
from graft_operator.loop.raced import RacedError
from graft_operator.loop.statuses import REPAIRS_A_SECOND, REPAIRS_AT_ONCE, Statuses, StatusMemory
from graft_operator.loop.store import NoRoomError, Store
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

REJECTED_SECONDS = 55.0
"""After that a pod template that the API server refused is tried again: quotas and webhooks change."""


@dataclass(kw_only=True)
class Reconciler:
    """Runs passes."""

    cluster: InitVar[Cluster]
    store: Store
    queue: WorkQueue[PoolKey]
    followers: PodFollowers
    resolutions: Resolutions
    introductions: Introductions
    keys: Callable[[], Mapping[str, str]]
    """The public keys for the control ports, as they are now."""
    settings: Settings
    clock: Callable[[], float] = time.time
    """Unix seconds."""

    def __post_init__(self, cluster: Cluster) -> None:
        events = Events(cluster, self.clock)
        repairs = Pace(REPAIRS_AT_ONCE - 1, REPAIRS_A_SECOND)
        self._effects = Effects(cluster, self.store, self.followers, self.resolutions, self.clock, events, repairs)
        self._statuses = Statuses(cluster, self.store, events, repairs)
        self._memories: dict[PoolKey, PoolMemory] = {}
        self._missing: dict[PoolKey, StatusMemory] = {}
        """Pools that Adapters name and that are not there."""
        self._unobserved: set[PoolKey] = set()

    def expect(self, keys: Collection[PoolKey]) -> None:
        """Log and count it once a pass has ended over each of these pools."""
        self._unobserved = set(keys)
        if not keys:
            metrics.OBSERVED.set_to_current_time()

    async def work(self) -> None:
        """Take keys from the queue for ever."""
        while True:
            key = await self.queue.take()
            try:
                await self._pass(key)
            finally:
                self.queue.done(key)

    async def _pass(self, key: PoolKey) -> None:
        started = time.monotonic()
        result = "error"
        try:
            await self.reconcile(key)
            self.queue.succeeded(key)
            result = "success"
        except RacedError as race:
            result = "raced"
            logger.info("%s: %s", key, race)
            self.queue.retry(key)
        except (UnavailableError, NoRoomError) as error:
            logger.warning("%s: %s; trying again in %.1f s", key, error, self.queue.retry(key))
        except Exception:
            logger.exception("%s: the pass failed; trying again in %.1f s", key, self.queue.retry(key))
        finally:
            metrics.PASSES.labels(result).inc()
            metrics.PASS_SECONDS.observe(time.monotonic() - started)

    async def reconcile(self, key: PoolKey) -> None:
        """Run one pass.

        Raises:
            RacedError, UnavailableError: no status was written; run it again.
        """
        view = self.store.pool(key)
        if view is not None and view.failure is not None:
            view = await self._effects.read_again(view)
        if view is None or view.deleting:
            self._forget(key)
            await self._report_without_pool(key)
            return
        self._missing.pop(key, None)
        memory = self._memory(key, view)
        self.followers.follow(key, self.store.pods(key))
        memory.referred = await self._effects.look_up(view, self.settings)
        plan = self._plan(view, memory)
        if not await self._effects.template_is_valid(plan, memory):
            plan = self._plan(view, memory)
        memory.applied = dict(plan.applied)
        try:
            await self._effects.carry_out(view, plan, memory)
        except EffectFailedError as error:
            plan = self._plan(view, memory, error.failure)
        self.introductions.make(key, plan.introductions)
        self.resolutions.keep(key, plan.remembered)
        if view.key in plan.statuses:
            vouched = {"applied_hash": applied_hash(memory.applied)} if memory.applied else {}
            status = plan.statuses[view.key].model_copy(update=vouched)
            await self._statuses.report(view, status, plan.transitions, memory.statuses)
            metrics.set_pool(key.namespace, key.name, status)
            self._is_observed(key)
        await self._statuses.report_attached(plan.attached, memory.statuses)
        self.queue.mark(key, plan.requeue_after)

    async def _report_without_pool(self, key: PoolKey) -> None:
        """Tell Adapters that their pool is not there."""
        adapters = self.store.adapters(key)
        if not adapters:
            self._missing.pop(key, None)
            return
        reports = reports_without_pool(key, adapters, self.clock())
        await self._statuses.report_attached(reports, self._missing.setdefault(key, StatusMemory()))

    def _is_observed(self, key: PoolKey) -> None:
        if key in self._unobserved:
            self._unobserved.discard(key)
            if not self._unobserved:
                metrics.OBSERVED.set_to_current_time()
                logger.info("a pass has ended over each pool that was there at the start")

    def _forget(self, key: PoolKey) -> None:
        self._is_observed(key)
        self._memories.pop(key, None)
        self.followers.follow(key, ())
        self.resolutions.keep(key, ())
        self.introductions.make(key, ())
        metrics.forget_pool(key.namespace, key.name)

    def _memory(self, key: PoolKey, view: PoolView) -> PoolMemory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != view.uid:
            self.resolutions.keep(key, ())
            memory = self._memories[key] = PoolMemory(view.uid)
        return memory

    def _plan(self, view: PoolView, memory: PoolMemory, failure: Failure | None = None) -> Plan:
        now = self.clock()
        return make_plan(self._observe(view, memory, failure, now), self.settings, now)

    def _observe(self, view: PoolView, memory: PoolMemory, failure: Failure | None, now: float) -> Observed:
        key = view.pool_key
        if view.refresh != memory.refresh[0]:
            memory.refresh = view.refresh, now
        memory.rejected = {
            template: (text, when)
            for template, (text, when) in memory.rejected.items()
            if when + REJECTED_SECONDS > now
        }
        return Observed(
            pool=view,
            adapters=self.store.adapters(key),
            children=self.store.children(key),
            pods=self.store.pods(key),
            reports=self.followers.reports(key),
            resolutions=self.resolutions.known(key),
            refresh_since=memory.refresh[1],
            keys=self.keys(),
            applied=dict(memory.applied),
            referred=memory.referred,
            rejected={template: text for template, (text, _) in memory.rejected.items()},
            failure=failure,
        )
