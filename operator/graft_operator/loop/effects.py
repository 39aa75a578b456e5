"""Carries out what a plan says: applies, pushes, deletions, questions to pods, statuses and Events."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from graft_runtime.errors import GraftError

from graft_operator import metrics
from graft_operator.clients.cluster import Cluster, ConflictError, RejectedError, UnavailableError
from graft_operator.clients.followers import PodFollowers
from graft_operator.clients.resolutions import Resolutions
from graft_operator.clients.runtime_client import PodAddress
from graft_operator.clients.shares import Pace
from graft_operator.decisions.applies import Apply
from graft_operator.decisions.conditions import Reason, timestamp
from graft_operator.decisions.fingerprint import first_difference
from graft_operator.decisions.observed import Applied, Failure, PoolView, applied_hash
from graft_operator.decisions.plan import Plan
from graft_operator.decisions.readers import read_child
from graft_operator.decisions.references import Known, read_referred, references_of
from graft_operator.decisions.transitions import Transition
from graft_operator.keys import ObjectKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.loop.store import Store
from graft_operator.objects import TEMPLATE_HASH_ANNOTATION, KubernetesObject, build_event, build_status_body
from graft_operator.resource import parse_spec
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

SAME_REPAIR_SECONDS = 600.0
"""Within these the same drift of an object gets no second Event: somebody may fight over a field for ever."""


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
    """Template hash → the API server's text, and when it said so (Unix seconds)."""
    referred: Known = field(default_factory=dict)
    repairs: dict[tuple[str, str], tuple[str, float]] = field(default_factory=dict)
    """Kind and name → the drift in the last Event about it, and when that was written (Unix seconds)."""


@dataclass(frozen=True)
class Effects:
    """What a pass changes outside its own process."""

    cluster: Cluster
    store: Store
    followers: PodFollowers
    resolutions: Resolutions
    clock: Callable[[], float]
    """Unix seconds."""
    events: tuple[Pace, Pace, Pace] = field(default_factory=lambda: (Pace(25, 0.1), Pace(200, 5.0), Pace(1000, 50.0)))
    """How many Events there may be about one object, in one namespace, and in all: at once, and a second."""

    async def look_up(self, view: PoolView, settings: Settings) -> Known:
        """Return the claims and Secrets that the administrator limits and that the spec names.

        Raises:
            UnavailableError
        """
        if not (settings.allowed_claims or settings.allowed_secrets):
            return {}
        try:
            wanted = {(each.kind, each.name) for each in references_of(parse_spec(view.spec), settings)}
        except GraftError:
            return {}
        bodies = {(kind, name): await self.cluster.get(kind, view.namespace, name) for kind, name in sorted(wanted)}
        return {key: None if body is None else read_referred(body) for key, body in bodies.items()}

    async def template_is_valid(self, plan: Plan, memory: PoolMemory) -> bool:
        """Try out a Deployment with spec.podTemplate in it, and remember why the API server refuses it.

        Raises:
            UnavailableError
        """
        for apply in plan.workload:
            if not apply.dry_run_first:
                continue
            try:
                await self.cluster.apply(apply.body, uid=apply.uid, dry_run=True)
            except ConflictError:
                continue  # the apply itself finds out why
            except RejectedError as error:
                template = apply.body["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION]
                memory.rejected[template] = (str(error), self.clock())
                return False
        return True

    async def read_again(self, view: PoolView) -> PoolView | None:
        """Look whether there is room for a pool by now; return it as it is then.

        Raises:
            UnavailableError
        """
        body = await self.cluster.get(ADAPTER_DEPLOYMENT.name, view.namespace, view.name)
        if body is not None:
            self.store.put(ADAPTER_DEPLOYMENT.name, body, mark=False)
        return self.store.pool(view.pool_key)

    async def carry_out(self, view: PoolView, plan: Plan, memory: PoolMemory) -> None:
        """Do all but report. A set is stored before it is pushed, and pushed whether or not new pods can be made.

        Raises:
            RacedError, UnavailableError: run the pass again. EffectFailedError: a person must look.
        """
        key = view.pool_key
        for apply in plan.mounts:
            await self._apply(view, apply, memory)
        for push in plan.pushes:
            self.followers.push(key, push.pod.uid, push.adapter_set)
        for apply in plan.workload:
            await self._apply(view, apply, memory)
        for child in plan.deletes:
            await self.cluster.delete(child.kind, key.namespace, child.name, child.uid)
            self.store.remove(ObjectKey(child.kind, key.namespace, child.name), child.uid)
        for resolve in plan.resolves:
            pods = [PodAddress(pod.uid, pod.ip, key.namespace) for pod in resolve.pods if pod.ip is not None]
            if pods:
                self.resolutions.ask(key, resolve.source, pods)

    async def report(self, view: PoolView, plan: Plan, memory: PoolMemory) -> None:
        """Write the statuses that changed, and the Events about what turned.

        Raises:
            RacedError, UnavailableError: run the pass again.
        """
        versions, before = {view.key: view.resource_version}, {view.key: view.status}
        vouched = {"applied_hash": applied_hash(memory.applied)} if memory.applied else {}
        for about, planned in plan.statuses.items():
            status = planned.model_copy(update=vouched)
            if status == before.get(about):
                continue
            if not await self._write_status(build_status_body(about, versions[about], status)):
                continue
            for transition in plan.transitions if about == view.key else ():
                await self._write_event(view, transition)

    async def _apply(self, view: PoolView, apply: Apply, memory: PoolMemory) -> None:
        kind, name = apply.key
        before = await self.cluster.get(kind, view.namespace, name) if apply.drifted else None
        try:
            answer = await self.cluster.apply(apply.body, uid=apply.uid, resource_version=apply.resource_version)
        except ConflictError as error:
            await self._look_again(view, kind, name)
            raise RacedError(f"{kind} {name} is not as it was observed: {error}") from error
        except RejectedError as error:
            message = f"the API server refuses {kind} {name}: {error}"
            raise EffectFailedError(Failure(Reason.APPLY_REJECTED, message)) from error
        self.store.put(kind, answer)
        memory.applied[apply.key] = Applied(apply.desired, read_child(kind, answer).fingerprint)
        if apply.drifted:
            await self._report_repair(view, apply.key, before, answer, memory)
        else:
            logger.info("%s: applied %s %s", view, kind, name)

    async def _look_again(self, view: PoolView, kind: str, name: str) -> None:
        """Look at what is there instead, and take it into the store if it is ours.

        Raises:
            EffectFailedError: it belongs to somebody else.
        """
        actual = await self.cluster.get(kind, view.namespace, name)
        if actual is None:
            for child in self.store.children(view.pool_key):
                if (child.kind, child.name) == (kind, name):
                    self.store.remove(ObjectKey(kind, view.namespace, name), child.uid)
            return
        if _is_left_over(actual, view):
            return  # of a pool of this name that was deleted: the garbage collector is on its way
        if read_child(kind, actual).owner_uid != view.uid:
            message = (
                f"{kind} {name} exists already and is not controlled by this AdapterDeployment"
                f"\n\nhint: delete or rename that {kind}, or give the AdapterDeployment another name"
            )
            raise EffectFailedError(Failure(Reason.FOREIGN_OBJECT, message))
        self.store.put(kind, actual)

    async def _report_repair(
        self,
        view: PoolView,
        key: tuple[str, str],
        before: KubernetesObject | None,
        after: KubernetesObject,
        memory: PoolMemory,
    ) -> None:
        difference = "was deleted" if before is None else first_difference(before, after)
        message = f"{' '.join(key)}: {difference}"
        known, when = memory.repairs.get(key, ("", 0.0))
        if difference is None:  # a field that is not ours stays, such as those of `kubectl rollout restart`
            logger.info("%s: applied %s %s: nothing had to be set back", view, *key)
        elif known == difference and self.clock() < when + SAME_REPAIR_SECONDS:
            logger.info("%s: repaired %s", view, message)
        else:
            memory.repairs[key] = difference, self.clock()
            await self._write_event(view, Transition("Normal", "DriftRepaired", message))

    async def _write_status(self, body: KubernetesObject) -> bool:
        """Write a status; return False where the object is gone."""
        try:
            answer = await self.cluster.apply_status(body)
        except ConflictError as error:
            raise RacedError(f"the status was not written: {error}") from error
        except RejectedError as error:
            if error.status == 404:
                return False
            raise
        self.store.put(body["kind"], answer, mark=False)
        return True

    async def _write_event(self, view: PoolView, transition: Transition) -> None:
        logger.info("%s: %s: %s", view, transition.reason, " ".join(transition.message.split()))
        keys = (view.uid, view.namespace, None)
        if not all(pace.may(key) for pace, key in zip(self.events, keys, strict=True)):
            metrics.DROPPED_EVENTS.inc()
            return
        event = build_event(
            view.key,
            view.uid,
            kind=transition.kind,
            reason=transition.reason,
            message=transition.message,
            at=timestamp(self.clock()),
        )
        try:
            await self.cluster.create(event)
        except (ConflictError, RejectedError, UnavailableError) as error:
            logger.warning("%s: the event %s was not written: %s", view, transition.reason, error)


def _is_left_over(body: KubernetesObject, view: PoolView) -> bool:
    owners = body["metadata"].get("ownerReferences") or ()
    pools = (owner for owner in owners if owner["kind"] == ADAPTER_DEPLOYMENT.name)
    return any(owner["name"] == view.name and owner["uid"] != view.uid for owner in pools)
