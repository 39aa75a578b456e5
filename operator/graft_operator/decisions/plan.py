"""The decision: what was observed in, what to do about it out. Pure; the same input gives the same plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.errors import ErrorCode, GraftError

from graft_operator.decisions import events
from graft_operator.decisions.adapter_sets import (
    next_sets,
    obsolete_hashes,
    plan_adapters,
    stored_sets,
    unrecorded_sources,
    version_of,
)
from graft_operator.decisions.checks import base_fault, merge_fault
from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.events import Transition
from graft_operator.decisions.observed import Applied, Child, Failure, Observed, PodView, applied_hash, digest_of
from graft_operator.decisions.status import failed_status, make_status
from graft_operator.objects import (
    TEMPLATE_HASH_ANNOTATION,
    KubernetesObject,
    Pool,
    build_adapter_set_config_map,
    build_config_map,
    build_deployment,
    build_disruption_budget,
    build_keys_config_map,
    build_network_policy,
    build_runtime_config,
    build_service,
)
from graft_operator.resource import AdapterDeploymentSpec, AdapterDeploymentStatus, parse_spec
from graft_operator.settings import Settings

RECHECK_SECONDS = 300.0
REJECTED_RECHECK_SECONDS = 60.0
FAILED_RECHECK_SECONDS = 10.0
SETTLE_SECONDS = 3.0
"""How long the first status of an operator waits for pods that are Ready to tell what they serve."""


@dataclass(frozen=True)
class Wanted:
    """An object that the pool needs."""

    body: KubernetesObject
    desired: str
    """A hash of `body`."""

    @property
    def key(self) -> tuple[str, str]:
        return self.body["kind"], self.body["metadata"]["name"]


@dataclass(frozen=True)
class Apply:
    """A server-side apply. `uid` and `resource_version`: the object that must be there; no uid: there must be none."""

    body: KubernetesObject
    desired: str
    """A hash of `body`."""
    uid: str | None
    resource_version: str | None = None
    dry_run_first: bool = False

    @property
    def key(self) -> tuple[str, str]:
        return self.body["kind"], self.body["metadata"]["name"]


@dataclass(frozen=True)
class Push:
    """An adapter set for one pod."""

    pod: PodView
    adapter_set: AdapterSet


@dataclass(frozen=True)
class Resolve:
    """A source whose digest one pod is to find out."""

    pod: PodView
    source: Source


@dataclass(frozen=True)
class Plan:
    """What to do, in the order of the fields."""

    applied: Mapping[tuple[str, str], Applied] = field(default_factory=dict)
    """Of the objects that the pool needs: the last apply of each, where it is known."""
    mounts: tuple[Apply, ...] = ()
    """What pods mount, the adapter sets among it."""
    pushes: tuple[Push, ...] = ()
    workload: tuple[Apply, ...] = ()
    """What else the pool needs; the pods come last."""
    deletes: tuple[Child, ...] = ()
    resolves: tuple[Resolve, ...] = ()
    unrecorded: frozenset[Source] = frozenset()
    """Sources of which answers must be kept: they are written down nowhere else."""
    status: AdapterDeploymentStatus | None = None
    """None: nothing can be told yet."""
    transitions: tuple[Transition, ...] = ()
    requeue_after: float = RECHECK_SECONDS
    """Seconds until the next pass, whatever happens."""


def make_plan(observed: Observed, settings: Settings, now: float) -> Plan:
    """What to do about `observed`.

    Args:
        now: Unix seconds.
    """
    if observed.pool.deleting:
        return Plan()
    try:
        spec = parse_spec(observed.pool.spec)
    except GraftError as error:
        status = failed_status(observed, Failure(Reason.INVALID_SPEC, error.message), now)
        return Plan(status=status, transitions=events.transitions(observed.pool.status, status))
    view = observed.pool
    return _Decision(Pool(view.namespace, view.name, view.uid, view.generation, spec), observed, settings, now).plan()


class _Decision:
    """The intermediate results of one plan."""

    def __init__(self, pool: Pool, observed: Observed, settings: Settings, now: float) -> None:
        self.pool = pool
        self.observed = observed
        self.settings = settings
        self.now = now
        self.deployment, self.failure = _decide_deployment(pool, observed, settings)
        self.current = self._current_hash()
        self.adapters = plan_adapters(pool.spec, observed, self.current, settings)
        self.sets = next_sets(observed, self.adapters, _names(pool.spec), self.current)
        self.mounts, self.workload = self._wanted_mounts(), self._wanted_workload()
        self.applied = self._last_applies()

    def plan(self) -> Plan:
        status = None if self._is_settling() else self._status()
        may_write = not self.pool.spec.suspend and self.observed.failure is None
        told = () if status is None else events.transitions(self.observed.pool.status, status)
        if not may_write:
            return Plan(
                applied=self.applied,
                status=status,
                transitions=told,
                unrecorded=self._unrecorded(),
                requeue_after=self._requeue_after(()),
            )
        resolves = self._resolves()
        return Plan(
            applied=self.applied,
            mounts=self._applies(self.mounts),
            pushes=self._pushes(),
            workload=self._applies(self.workload),
            deletes=self._deletes(),
            resolves=resolves,
            unrecorded=self._unrecorded(),
            status=status,
            transitions=told,
            requeue_after=self._requeue_after(resolves),
        )

    def _current_hash(self) -> str:
        """The spec's own, or that of what runs where the spec's can't be made.

        A merge that can't be made leaves the set of what runs frozen: it names less than hot pods serve.
        """
        own = self.observed.own("Deployment", self.pool.name)
        runs = None if own is None or own.rollout is None else own.rollout.config_hash
        if self.deployment is None and runs and self.pool.spec.merge is None:
            return runs
        return build_runtime_config(self.pool).config_hash()

    def _status(self) -> AdapterDeploymentStatus:
        annotations = {} if self.deployment is None else self.deployment["metadata"]["annotations"]
        to_store = {found.config_hash: found for found in self._sets_to_store()}
        sets = stored_sets(self.observed) if self.pool.spec.suspend else to_store
        return make_status(
            self.pool,
            self.observed,
            failure=self.failure,
            template_hash=annotations.get(TEMPLATE_HASH_ANNOTATION),
            sets=sets,
            current=self.current,
            adapters=self.adapters,
            now=self.now,
        )

    def _is_settling(self) -> bool:
        """An operator that just started asks the pods before it tells that they are not ready."""
        return any(
            pod.ready and pod.counts and pod.ip and not report.asked
            for pod in self.observed.pods
            if (report := self.observed.reports.get(pod.uid)) is not None
        )

    def _unrecorded(self) -> frozenset[Source]:
        return unrecorded_sources(self.pool.spec, self.observed, self.current)

    # Effects

    def _wanted_mounts(self) -> tuple[Wanted, ...]:
        bodies = [build_keys_config_map(self.pool, self.observed.keys)]
        if self.deployment is not None:
            bodies.append(build_config_map(self.pool))
        bodies += [build_adapter_set_config_map(self.pool, found) for found in self._sets_to_store()]
        return tuple(Wanted(body, digest_of(body)) for body in bodies)

    def _wanted_workload(self) -> tuple[Wanted, ...]:
        pool = self.pool
        bodies = [build_service(pool), build_disruption_budget(pool), build_network_policy(pool, self.settings)]
        bodies.append(self.deployment)
        return tuple(Wanted(body, digest_of(body)) for body in bodies if body is not None)

    def _last_applies(self) -> Mapping[tuple[str, str], Applied]:
        """As remembered; by an operator that just started, from the status, where all objects are still as it says."""
        wanted = (*self.mounts, *self.workload)
        known = self.observed.applied
        if known:
            return {found.key: known[found.key] for found in wanted if found.key in known}
        supposed = {
            found.key: Applied(found.desired, child.fingerprint)
            for found in wanted
            if (child := self.observed.own(*found.key)) is not None
        }
        return supposed if applied_hash(supposed) == self.observed.pool.status.applied_hash else {}

    def _applies(self, wanted: Sequence[Wanted]) -> tuple[Apply, ...]:
        return tuple(self._apply(found) for found in wanted if not self._in_sync(found))

    def _sets_to_store(self) -> list[AdapterSet]:
        """The current one only where pods of it can exist."""
        return [self.sets[key] for key in sorted(self.sets)] if self.deployment or self._has_pods() else []

    def _has_pods(self) -> bool:
        return self.observed.own("Deployment", self.pool.name) is not None

    def _apply(self, wanted: Wanted) -> Apply:
        body, own = wanted.body, self.observed.own(*wanted.key)
        # A set must follow the very one that its generation was counted from.
        races = own is not None and own.adapter_set is not None
        return Apply(
            body=body,
            desired=wanted.desired,
            uid=None if own is None else own.uid,
            resource_version=own.resource_version if own is not None and races else None,
            dry_run_first=body["kind"] == "Deployment" and bool(self.pool.spec.pod_template.spec),
        )

    def _in_sync(self, wanted: Wanted) -> bool:
        """It was applied as it is wanted, and nobody touched it since."""
        own, last = self.observed.own(*wanted.key), self.applied.get(wanted.key)
        return own is not None and last == Applied(wanted.desired, own.fingerprint)

    def _pushes(self) -> tuple[Push, ...]:
        versions = {config_hash: version_of(adapter_set) for config_hash, adapter_set in self.sets.items()}
        pushes = []
        for pod in self.observed.pods:
            status = self.observed.report(pod)
            if status is None or pod.deleting or status.config_hash not in versions:
                continue
            if status.adapter_set != versions[status.config_hash]:
                pushes.append(Push(pod, self.sets[status.config_hash]))
        return tuple(pushes)

    def _deletes(self) -> tuple[Child, ...]:
        obsolete = obsolete_hashes(self.observed, self.sets)
        unwanted = {("PodDisruptionBudget", self.pool.name)} if build_disruption_budget(self.pool) is None else set()
        return tuple(
            child
            for child in self.observed.own_children
            if not child.deleting
            and ((child.kind, child.name) in unwanted or (child.kind == "ConfigMap" and child.config_hash in obsolete))
        )

    def _resolves(self) -> tuple[Resolve, ...]:
        pod = self._pod_to_ask()
        if pod is None:
            return ()
        sources = {plan.unresolved: None for plan in self.adapters if plan.unresolved is not None}
        return tuple(Resolve(pod, source) for source in sources if self._retry_at(source) <= self.now)

    def _pod_to_ask(self) -> PodView | None:
        """One that answers and has the sources of the current spec; of the newest a Ready one, where there is one."""
        newest = {pod.uid for pod in self.observed.newest_pods}
        able = [
            pod
            for pod in self.observed.pods
            if pod.counts and (status := self.observed.report(pod)) and status.config_hash == self.current
        ]
        return min(able, key=lambda pod: (pod.uid not in newest, not pod.ready, pod.name), default=None)

    def _retry_at(self, source: Source) -> float:
        found = self.observed.resolutions.get(source)
        return 0.0 if found is None else found.retry_at

    def _requeue_after(self, resolves: Sequence[Resolve]) -> float:
        asked = {resolve.source for resolve in resolves}
        waits = [
            self._retry_at(plan.unresolved) - self.now
            for plan in self.adapters
            if plan.unresolved is not None and plan.unresolved not in asked
        ]
        waits = [wait for wait in waits if wait > 0]
        if self.observed.failure is not None:
            waits.append(FAILED_RECHECK_SECONDS)
        if self.observed.rejected:
            waits.append(REJECTED_RECHECK_SECONDS)
        if self._is_settling():
            waits.append(SETTLE_SECONDS)
        return min([*waits, RECHECK_SECONDS])


def _decide_deployment(
    pool: Pool, observed: Observed, settings: Settings
) -> tuple[KubernetesObject | None, Failure | None]:
    """The Deployment, or None and why there can't be one; what runs goes on then."""
    if observed.failure is not None:
        return None, observed.failure
    fault = base_fault(pool.spec, settings) or merge_fault(pool.spec, settings)
    if fault is not None:
        return None, Failure(fault.code.value, fault.message)
    try:
        deployment = build_deployment(pool, settings)
    except GraftError as error:
        return None, Failure(error.code.value, error.message)
    rejected = observed.rejected.get(deployment["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION])
    if rejected is not None:
        return None, Failure(ErrorCode.INVALID_POD_TEMPLATE.value, rejected)
    return deployment, None


def _names(spec: AdapterDeploymentSpec) -> frozenset[str]:
    return frozenset(adapter.name for adapter in spec.adapters)
