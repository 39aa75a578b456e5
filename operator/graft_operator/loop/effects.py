"""Carries out what a plan says but for the statuses: applies, pushes, deletions, questions to pods."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, field

from graft_runtime.errors import GraftError

from graft_operator.clients.cluster import Cluster, ConflictError, RejectedError
from graft_operator.clients.followers import PodFollowers
from graft_operator.clients.resolutions import Resolutions
from graft_operator.clients.runtime_client import PodAddress
from graft_operator.clients.shares import Pace
from graft_operator.decisions.applies import Apply
from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.fingerprint import first_difference
from graft_operator.decisions.foreign_fields import foreign_pointers
from graft_operator.decisions.observed import Applied, Failure, PoolView
from graft_operator.decisions.ownership import is_left_over, is_ours
from graft_operator.decisions.plan import Plan
from graft_operator.decisions.readers import read_child
from graft_operator.decisions.references import Known, read_referred, references_of
from graft_operator.decisions.transitions import Transition
from graft_operator.keys import ObjectKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.loop.events import Events
from graft_operator.loop.raced import RacedError
from graft_operator.loop.statuses import StatusMemory
from graft_operator.loop.store import Store
from graft_operator.objects import TEMPLATE_HASH_ANNOTATION, KubernetesObject
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
    statuses: StatusMemory = field(default_factory=StatusMemory)
    refresh: tuple[str, float] = ("", 0.0)
    """The annotation graft.dev/refresh as it was seen last, and when that was first (Unix seconds)."""


@dataclass(frozen=True)
class Effects:
    """What a pass changes outside its own process."""

    cluster: Cluster
    store: Store
    followers: PodFollowers
    resolutions: Resolutions
    clock: Callable[[], float]
    """Unix seconds."""
    events: Events
    repairs: Pace
    """How often what others change is set right."""

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

    async def _apply(self, view: PoolView, apply: Apply, memory: PoolMemory) -> None:
        kind, name = apply.key
        before = await self.cluster.get(kind, view.namespace, name) if apply.drifted else None
        if apply.drifted:
            self._refuse_a_contest(view, apply)
        try:
            if apply.foreign and before is not None:
                await self.cluster.remove_fields({**before, "kind": kind}, foreign_pointers(before))
            answer = await self.cluster.apply(apply.body, uid=apply.uid, resource_version=apply.resource_version)
        except ConflictError as error:
            await self._look_again(view, apply, memory)
            raise RacedError(f"{kind} {name} is not as it was observed: {error}") from error
        except RejectedError as error:
            raise _refused(apply, error) from error
        self._remember(apply, answer, memory)
        if apply.drifted:
            await self._report_repair(view, apply.key, before, answer, memory)
        else:
            logger.info("%s: applied %s %s", view, kind, name)

    def _refuse_a_contest(self, view: PoolView, apply: Apply) -> None:
        """Raise EffectFailedError about an object that was set right too often of late."""
        if not self.repairs.wait((view.uid, apply.key)):
            return
        message = (
            f"{' '.join(apply.key)} is changed by somebody else again and again, and set right once a minute"
            "\n\nhint: find who does it (`kubectl get --show-managed-fields -o yaml`); two releases of Graft must not"
            " serve the same namespace"
        )
        raise EffectFailedError(Failure(Reason.CONTESTED, message))

    def _remember(self, apply: Apply, answer: KubernetesObject, memory: PoolMemory) -> None:
        self.store.put(apply.body["kind"], answer)
        memory.applied[apply.key] = Applied(apply.desired, read_child(apply.body["kind"], answer).fingerprint)

    async def _look_again(self, view: PoolView, apply: Apply, memory: PoolMemory) -> None:
        """Look at what is there instead, and take it into the store if it is ours.

        Raises:
            EffectFailedError: it belongs to somebody else, or can't be taken back. RacedError: it has changed again.
        """
        kind, name = apply.key
        actual = await self.cluster.get(kind, view.namespace, name)
        if actual is None:
            for child in self.store.children(view.pool_key):
                if (child.kind, child.name) == (kind, name):
                    self.store.remove(ObjectKey(kind, view.namespace, name), child.uid)
            return
        if is_left_over(actual, view.name, view.uid):
            return
        if not is_ours(actual, view.uid):
            message = (
                f"{kind} {name} exists already and is not controlled by this AdapterDeployment"
                f"\n\nhint: delete or rename that {kind}, or give the AdapterDeployment another name"
            )
            raise EffectFailedError(Failure(Reason.FOREIGN_OBJECT, message))
        if self.store.put(kind, actual) is None:
            await self._take_back(view, apply, actual, memory)

    async def _take_back(self, view: PoolView, apply: Apply, actual: KubernetesObject, memory: PoolMemory) -> None:
        """Give an object of ours the label and the owner back by which it is known."""
        metadata = actual["metadata"]
        self._refuse_a_contest(view, apply)
        try:
            answer = await self.cluster.apply(
                apply.body, uid=metadata["uid"], resource_version=metadata["resourceVersion"]
            )
        except ConflictError as error:
            raise RacedError(f"{' '.join(apply.key)} has changed again: {error}") from error
        except RejectedError as error:
            raise _refused(apply, error) from error
        self._remember(apply, answer, memory)
        await self._report_repair(view, apply.key, actual, answer, memory)

    async def _report_repair(
        self,
        view: PoolView,
        key: tuple[str, str],
        before: KubernetesObject | None,
        after: KubernetesObject,
        memory: PoolMemory,
    ) -> None:
        difference = "was deleted" if before is None else first_difference(before, after)
        if difference is not None:
            self.repairs.count((view.uid, key))
        message = f"{' '.join(key)}: {difference}"
        known, when = memory.repairs.get(key, ("", 0.0))
        if difference is None:  # a field that is not ours stays, such as those of `kubectl rollout restart`
            logger.info("%s: applied %s %s: nothing had to be set back", view, *key)
        elif known == difference and self.clock() < when + SAME_REPAIR_SECONDS:
            logger.info("%s: repaired %s", view, message)
        else:
            memory.repairs[key] = difference, self.clock()
            await self.events.write(view, Transition("Normal", "DriftRepaired", message))


def _refused(apply: Apply, error: RejectedError) -> EffectFailedError:
    return EffectFailedError(Failure(Reason.APPLY_REJECTED, f"the API server refuses {' '.join(apply.key)}: {error}"))
