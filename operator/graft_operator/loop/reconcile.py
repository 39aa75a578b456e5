"""One pass over one pool: observe, plan, apply, tell. Level-triggered: a pass needs no memory of what caused it."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace

from graft_operator import metrics
from graft_operator.clients.cluster import Cluster, ConflictError, RejectedError, UnavailableError
from graft_operator.clients.followers import PodFollowers
from graft_operator.clients.resolutions import Resolutions
from graft_operator.clients.runtime_client import PodAddress
from graft_operator.decisions.conditions import Reason, timestamp
from graft_operator.decisions.events import Transition
from graft_operator.decisions.observed import Applied, Failure, Observed, PoolView, applied_hash, read_child
from graft_operator.decisions.plan import Apply, Plan, make_plan
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT, EVENT
from graft_operator.loop.queue import WorkQueue
from graft_operator.loop.store import Store
from graft_operator.objects import TEMPLATE_HASH_ANNOTATION, KubernetesObject
from graft_operator.resource import AdapterDeploymentStatus
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

MAX_EVENT_MESSAGE = 1000
REJECTED_SECONDS = 55.0
"""After that a pod template that the API server refused is tried again: quotas and webhooks change."""


class EffectFailedError(Exception):
    """An effect can't be had; a person must look."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


class RacedError(Exception):
    """Something changed under the pass; the next one sees it."""


@dataclass
class PoolMemory:
    """What is remembered of a pool between passes; nothing is lost with it but a few writes that change nothing."""

    uid: str
    applied: dict[tuple[str, str], Applied] = field(default_factory=dict)
    rejected: dict[str, tuple[str, float]] = field(default_factory=dict)
    """Template hash → the API server's text, and when it said so."""
    status: AdapterDeploymentStatus | None = None
    """As written last: events lag behind one's own writes."""


class Reconciler:
    """Runs passes.

    Args:
        keys: the public keys for the control ports, as they are now.
    """

    def __init__(
        self,
        *,
        cluster: Cluster,
        store: Store,
        queue: WorkQueue[PoolKey],
        followers: PodFollowers,
        resolutions: Resolutions,
        keys: Callable[[], Mapping[str, str]],
        settings: Settings,
    ) -> None:
        self._cluster = cluster
        self._store = store
        self._queue = queue
        self._followers = followers
        self._resolutions = resolutions
        self._keys = keys
        self._settings = settings
        self._memories: dict[PoolKey, PoolMemory] = {}
        self._unobserved: set[PoolKey] = set()

    def expect(self, keys: Collection[PoolKey]) -> None:
        """Tell in the log and the metrics when a pass has ended over each of these pools."""
        self._unobserved = set(keys)
        if not keys:
            metrics.OBSERVED.set_to_current_time()

    async def work(self) -> None:
        """Take keys from the queue for ever."""
        while True:
            key = await self._queue.take()
            try:
                await self._pass(key)
            finally:
                self._queue.done(key)

    async def _pass(self, key: PoolKey) -> None:
        started = time.monotonic()
        result = "error"
        try:
            await self.reconcile(key)
            self._queue.succeeded(key)
            result = "success"
        except RacedError as race:
            result = "raced"
            logger.info("%s: %s", key, race)
            self._queue.retry(key)
        except UnavailableError as error:
            logger.warning("%s: %s; trying again in %.1f s", key, error, self._queue.retry(key))
        except Exception:
            logger.exception("%s: the pass failed; trying again in %.1f s", key, self._queue.retry(key))
        finally:
            metrics.PASSES.labels(result).inc()
            metrics.PASS_SECONDS.observe(time.monotonic() - started)

    async def reconcile(self, key: PoolKey) -> None:
        """One pass.

        Raises:
            RacedError, UnavailableError: nothing was told; run it again.
        """
        view = self._store.pool(key)
        if view is None or view.deleting:
            self._forget(key)
            return
        memory = self._memory(key, view)
        self._followers.follow(key, self._store.pods(key))
        plan = make_plan(self._observe(key, view, memory), self._settings, time.time())
        if not await self._template_is_valid(plan, memory):
            plan = make_plan(self._observe(key, view, memory), self._settings, time.time())
        memory.applied = dict(plan.applied)
        try:
            await self._carry_out(key, plan, memory)
        except EffectFailedError as error:
            observed = replace(self._observe(key, view, memory), failure=error.failure)
            plan = make_plan(observed, self._settings, time.time())
        self._resolutions.keep(key, plan.unrecorded)
        await self._tell(key, view, plan, memory)
        if plan.status is not None:
            metrics.tell_pool(key.namespace, key.name, plan.status)
            self._is_observed(key)
        self._queue.mark(key, plan.requeue_after)

    def _is_observed(self, key: PoolKey) -> None:
        if key in self._unobserved:
            self._unobserved.discard(key)
            if not self._unobserved:
                metrics.OBSERVED.set_to_current_time()
                logger.info("a pass has ended over each pool that was there at the start")

    def _forget(self, key: PoolKey) -> None:
        self._is_observed(key)
        self._memories.pop(key, None)
        self._followers.follow(key, ())
        self._resolutions.keep(key, ())
        metrics.forget_pool(key.namespace, key.name)

    def _memory(self, key: PoolKey, view: PoolView) -> PoolMemory:
        memory = self._memories.get(key)
        if memory is None or memory.uid != view.uid:
            self._resolutions.keep(key, ())
            memory = self._memories[key] = PoolMemory(view.uid)
        return memory

    def _observe(self, key: PoolKey, view: PoolView, memory: PoolMemory) -> Observed:
        now = time.time()
        memory.rejected = {
            template: (text, when)
            for template, (text, when) in memory.rejected.items()
            if when + REJECTED_SECONDS > now
        }
        return Observed(
            pool=view if memory.status is None else replace(view, status=memory.status),
            children=self._store.children(key),
            pods=self._store.pods(key),
            reports=self._followers.reports(key),
            resolutions=self._resolutions.known(key),
            keys=self._keys(),
            applied=dict(memory.applied),
            rejected={template: text for template, (text, _) in memory.rejected.items()},
        )

    # Effects

    async def _template_is_valid(self, plan: Plan, memory: PoolMemory) -> bool:
        """Tries out a Deployment with spec.podTemplate in it; what the API server says is remembered."""
        for apply in plan.workload:
            if not apply.dry_run_first:
                continue
            try:
                await self._cluster.apply(apply.body, uid=apply.uid, dry_run=True)
            except ConflictError:
                continue  # the apply itself finds out why
            except RejectedError as error:
                template = apply.body["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
                memory.rejected[template] = (str(error), time.time())
                return False
        return True

    async def _carry_out(self, key: PoolKey, plan: Plan, memory: PoolMemory) -> None:
        """A set is stored before it is pushed, and pushed whether or not new pods can be made."""
        for apply in plan.mounts:
            await self._apply(key, apply, memory)
        for push in plan.pushes:
            self._followers.push(key, push.pod.uid, push.adapter_set)
        for apply in plan.workload:
            await self._apply(key, apply, memory)
        for child in plan.deletes:
            await self._cluster.delete(child.kind, key.namespace, child.name, child.uid)
            self._store.remove(ObjectKey(child.kind, key.namespace, child.name), child.uid)
        for resolve in plan.resolves:
            if resolve.pod.ip is not None:
                self._resolutions.ask(key, resolve.source, PodAddress(resolve.pod.uid, resolve.pod.ip))

    async def _apply(self, key: PoolKey, apply: Apply, memory: PoolMemory) -> None:
        kind, name = apply.key
        try:
            answer = await self._cluster.apply(apply.body, uid=apply.uid, resource_version=apply.resource_version)
        except ConflictError as error:
            await self._look_again(key, kind, name, memory)
            raise RacedError(f"{kind} {name} is not as it was observed: {error}") from error
        except RejectedError as error:
            message = f"the API server refuses {kind} {name}: {error}"
            raise EffectFailedError(Failure(Reason.APPLY_REJECTED, message)) from error
        self._store.put(kind, answer)
        memory.applied[apply.key] = Applied(apply.desired, read_child(kind, answer).fingerprint)
        logger.info("%s: applied %s %s", key, kind, name)

    async def _look_again(self, key: PoolKey, kind: str, name: str, memory: PoolMemory) -> None:
        """What is there instead: ours, then it was unknown so far; a foreign one, then a person must look."""
        found = await self._cluster.get(kind, key.namespace, name)
        if found is None:
            for child in self._store.children(key):
                if (child.kind, child.name) == (kind, name):
                    self._store.remove(ObjectKey(kind, key.namespace, name), child.uid)
            return
        if _is_left_over(found, key, memory.uid):
            return  # of a pool of this name that was deleted: the garbage collector is on its way
        if read_child(kind, found).owner_uid != memory.uid:
            message = (
                f"{kind} {name} exists already and is not controlled by this AdapterDeployment"
                f"\n\nhint: delete or rename that {kind}, or give the AdapterDeployment another name"
            )
            raise EffectFailedError(Failure(Reason.FOREIGN_OBJECT, message))
        self._store.put(kind, found)

    async def _tell(self, key: PoolKey, view: PoolView, plan: Plan, memory: PoolMemory) -> None:
        if plan.status is None:
            return
        status = plan.status
        if memory.applied:
            status = status.model_copy(update={"applied_hash": applied_hash(memory.applied)})
        if status == (memory.status or view.status):
            return
        body = {
            **ADAPTER_DEPLOYMENT.type_meta,
            "metadata": {"namespace": key.namespace, "name": key.name, "resourceVersion": view.resource_version},
            "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
        }
        try:
            answer = await self._cluster.apply_status(body)
        except ConflictError as error:
            raise RacedError(f"the status was not written: {error}") from error
        except RejectedError as error:
            if error.status == 404:
                return
            raise
        memory.status = status
        self._store.put(ADAPTER_DEPLOYMENT.name, answer, mark=False)
        for transition in plan.transitions:
            await self._tell_event(key, view, transition)

    async def _tell_event(self, key: PoolKey, view: PoolView, transition: Transition) -> None:
        logger.info("%s: %s: %s", key, transition.reason, " ".join(transition.message.split()))
        now = timestamp(time.time())
        involved = {**ADAPTER_DEPLOYMENT.type_meta, "namespace": key.namespace, "name": key.name}
        event = {
            **EVENT.type_meta,
            "metadata": {"namespace": key.namespace, "generateName": f"{key.name}."},
            "involvedObject": {**involved, "uid": view.uid},
            "type": transition.kind,
            "reason": transition.reason,
            "message": transition.message[:MAX_EVENT_MESSAGE],
            "source": {"component": "graft-operator"},
            "reportingComponent": "graft-operator",
            "reportingInstance": "",
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._cluster.create(event)
        except (ConflictError, RejectedError, UnavailableError) as error:
            logger.warning("%s: the event %s was not written: %s", key, transition.reason, error)


def _is_left_over(body: KubernetesObject, key: PoolKey, uid: str) -> bool:
    owners = body["metadata"].get("ownerReferences") or ()
    pools = (owner for owner in owners if owner["kind"] == ADAPTER_DEPLOYMENT.name)
    return any(owner["name"] == key.name and owner["uid"] != uid for owner in pools)
