"""The decision: what was observed in, what to do about it out. Pure; the same input gives the same plan."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import RuntimeConfig
from graft_runtime.errors import ErrorCode, GraftError

from graft_operator.decisions.adapter_sets import (
    AdapterPlan,
    Push,
    next_sets,
    obsolete_hashes,
    plan_adapters,
    plan_pushes,
    sources_to_remember,
)
from graft_operator.decisions.applies import Apply, last_applies, plan_applies, plan_deletes, wanted_objects
from graft_operator.decisions.attached import attach
from graft_operator.decisions.attached_status import AttachedReport, kept, refused, served
from graft_operator.decisions.checks import base_fault, merge_fault, pod_template_fault
from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.introductions import RENEW_SECONDS, Introduction, plan_introductions
from graft_operator.decisions.observed import AdapterView, Applied, Child, Failure, Observed
from graft_operator.decisions.pool_status import adapter_statuses, failed_status, make_status
from graft_operator.decisions.references import reference_fault
from graft_operator.decisions.resolves import Resolve, plan_resolves, waits
from graft_operator.decisions.rolls import required_adapters
from graft_operator.decisions.transitions import Transition, transitions
from graft_operator.decisions.wanted_adapters import WantedAdapter, inline_adapters
from graft_operator.keys import ObjectKey, PoolKey
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
from graft_operator.resource import AdapterDeploymentStatus, AdapterStatus, parse_spec
from graft_operator.settings import Settings

RECHECK_SECONDS = 300.0
REJECTED_RECHECK_SECONDS = 60.0
FAILED_RECHECK_SECONDS = 10.0
SETTLE_SECONDS = 3.0
"""How long the first status of an operator waits for pods that are Ready to tell what they serve."""


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
    introductions: tuple[Introduction, ...] = ()
    remembered: frozenset[Source] = frozenset()
    """Sources of which answers must be kept: they are written down nowhere else, or what is may be outdated."""
    statuses: Mapping[ObjectKey, AdapterDeploymentStatus] = field(default_factory=dict)
    """The status of each object of which something can be told."""
    attached: tuple[AttachedReport, ...] = ()
    """What is told of the Adapters that name the pool."""
    transitions: tuple[Transition, ...] = ()
    requeue_after: float = RECHECK_SECONDS
    """Seconds until the next pass, whatever happens."""


def make_plan(observed: Observed, settings: Settings, now: float) -> Plan:
    """Decide what to do about `observed`.

    Args:
        now: Unix seconds.
    """
    view = observed.pool
    if view.deleting:
        return Plan(attached=reports_without_pool(view.pool_key, observed.adapters, now))
    if view.failure is not None:
        return _failed(observed, view.failure, now)
    try:
        spec = parse_spec(view.spec)
    except GraftError as error:
        return _failed(observed, Failure(Reason.INVALID_SPEC, error.message), now)
    pool = Pool(view.namespace, view.name, view.uid, view.generation, spec)
    attached = attach(pool, observed.adapters)
    plan = plan_pool(pool, (*inline_adapters(pool), *attached.wanted), observed, settings, now)
    others = tuple(
        refused(adapter, attached.refused[adapter.key], now)
        for adapter in observed.adapters
        if adapter.key in attached.refused
    )
    return replace(plan, attached=(*plan.attached, *others))


def reports_without_pool(key: PoolKey, adapters: Iterable[AdapterView], now: float) -> tuple[AttachedReport, ...]:
    """Return what is told of Adapters whose pool is not there."""
    message = f"there is no AdapterDeployment {key.name} in this namespace: the Adapter is served once there is one"
    failure = Failure(Reason.POOL_NOT_FOUND, message)
    return tuple(refused(adapter, failure, now) for adapter in adapters if not adapter.deleting)


def _failed(observed: Observed, failure: Failure, now: float) -> Plan:
    status = failed_status(observed, failure, now)
    why = Failure(failure.reason, f"AdapterDeployment {observed.pool.name}: {failure.message}")
    return Plan(
        statuses={observed.pool.key: status},
        attached=tuple(kept(each, why, now) for each in observed.adapters if not each.deleting),
        transitions=transitions(observed.pool.status, status),
    )


@dataclass(frozen=True)
class _Target:
    """What the pods are to be made from."""

    config: RuntimeConfig
    deployment: KubernetesObject | None
    """None: there can't be one; what runs goes on then."""
    failure: Failure | None
    """Why not."""
    current: str
    """The config hash whose adapter set follows the spec."""

    @property
    def template_hash(self) -> str | None:
        return None if self.deployment is None else _template_hash(self.deployment)

    @property
    def pod_template_hash(self) -> str | None:
        return None if self.deployment is None else _template_hash(self.deployment["spec"]["template"])


def plan_pool(pool: Pool, wanted: Sequence[WantedAdapter], observed: Observed, settings: Settings, now: float) -> Plan:
    """Decide what to do about a pool whose spec can be read.

    Args:
        wanted: the adapters that it is to serve.
        now: Unix seconds.
    """
    target = _decide_target(pool, observed, settings)
    adapters = plan_adapters(pool.spec, wanted, observed, target.current, settings)
    if pool.spec.merge is None:
        adapters = required_adapters(adapters, observed, target.pod_template_hash, pool.spec.replicas)
    sets = next_sets(observed, adapters, frozenset(adapter.name for adapter in wanted), target.current)
    # The current set is stored only where pods of it can exist.
    stored = sets if target.deployment is not None or observed.rollout is not None else {}
    mounts = wanted_objects(_mounted(pool, target, stored, observed))
    workload = wanted_objects(_workload(pool, target, settings))
    last = last_applies((*mounts, *workload), observed)
    report_only = pool.spec.suspend or observed.failure is not None
    resolves = () if report_only else plan_resolves(adapters, observed, target.current, now)
    introductions = plan_introductions(observed, sets)
    in_force = observed.stored_sets if pool.spec.suspend else stored
    told = {} if _is_settling(observed) else adapter_statuses(pool, observed, in_force, adapters, now)
    status = _status(pool, target, told, in_force, observed, now=now)
    plan = Plan(
        applied=last,
        remembered=sources_to_remember(adapters, observed, target.current),
        statuses={} if status is None else {observed.pool.key: status},
        attached=tuple(
            served(view, told[view.key, view.served_name], now)
            for view in observed.adapters
            if (view.key, view.served_name) in told
        ),
        transitions=() if status is None else transitions(observed.pool.status, status),
        introductions=introductions,
        requeue_after=_requeue_after(adapters, resolves, introductions, observed, now),
    )
    if report_only:
        return plan
    return replace(
        plan,
        mounts=plan_applies(pool, mounts, observed, last),
        pushes=plan_pushes(observed, sets),
        workload=plan_applies(pool, workload, observed, last),
        deletes=plan_deletes(pool, obsolete_hashes(observed, sets), observed),
        resolves=resolves,
    )


def _decide_target(pool: Pool, observed: Observed, settings: Settings) -> _Target:
    config = build_runtime_config(pool)
    config_hash = config.config_hash()
    deployment, failure = _decide_deployment(pool, config_hash, observed, settings)
    runs = None if observed.rollout is None else observed.rollout.config_hash
    # Where the spec's own can't be made, the set of what runs follows the spec. Not so for a merge: it names less than
    # hot pods serve.
    follows_what_runs = deployment is None and pool.spec.merge is None
    return _Target(config, deployment, failure, current=runs if runs and follows_what_runs else config_hash)


def _decide_deployment(
    pool: Pool, config_hash: str, observed: Observed, settings: Settings
) -> tuple[KubernetesObject | None, Failure | None]:
    if observed.failure is not None:
        return None, observed.failure
    checks = (base_fault, merge_fault, pod_template_fault)
    fault = next((fault for check in checks if (fault := check(pool.spec, settings)) is not None), None)
    fault = fault or reference_fault(pool.spec, observed.referred, settings)
    if fault is not None:
        return None, Failure(fault.code.value, fault.message)
    try:
        deployment = build_deployment(pool, config_hash, settings)
    except GraftError as error:
        return None, Failure(error.code.value, error.message)
    rejected = observed.rejected.get(_template_hash(deployment))
    if rejected is not None:
        return None, Failure(ErrorCode.INVALID_POD_TEMPLATE.value, rejected)
    return deployment, None


def _template_hash(body: KubernetesObject) -> str:
    return str(body["metadata"]["annotations"][TEMPLATE_HASH_ANNOTATION])


def _status(
    pool: Pool,
    target: _Target,
    adapters: Mapping[tuple[ObjectKey, str], AdapterStatus],
    sets: Mapping[str, AdapterSet],
    observed: Observed,
    *,
    now: float,
) -> AdapterDeploymentStatus | None:
    """Return the status of the pool, or None while an operator that just started has not asked all Ready pods."""
    if _is_settling(observed):
        return None
    return make_status(
        pool,
        observed,
        failure=target.failure,
        template_hash=target.template_hash,
        sets=sets,
        current=target.current,
        adapters=adapters,
        now=now,
    )


def _workload(pool: Pool, target: _Target, settings: Settings) -> list[KubernetesObject | None]:
    return [
        build_service(pool),
        build_disruption_budget(pool),
        build_network_policy(pool, settings),
        target.deployment,
    ]


def _mounted(pool: Pool, target: _Target, sets: Mapping[str, AdapterSet], observed: Observed) -> list[KubernetesObject]:
    configs = [] if target.deployment is None else [build_config_map(pool, target.config)]
    stored = [build_adapter_set_config_map(pool, sets[config_hash]) for config_hash in sorted(sets)]
    return [build_keys_config_map(pool, observed.keys), *configs, *stored]


def _is_settling(observed: Observed) -> bool:
    return any(
        pod.ready and pod.counts and pod.ip and not report.asked
        for pod in observed.pods
        if (report := observed.reports.get(pod.uid)) is not None
    )


def _requeue_after(
    adapters: Sequence[AdapterPlan],
    resolves: Sequence[Resolve],
    introductions: Sequence[Introduction],
    observed: Observed,
    now: float,
) -> float:
    seconds = [RECHECK_SECONDS, *waits(adapters, resolves, observed, now)]
    if introductions:
        seconds.append(RENEW_SECONDS)
    if observed.failure is not None:
        seconds.append(FAILED_RECHECK_SECONDS)
    if observed.rejected or observed.referred:
        seconds.append(REJECTED_RECHECK_SECONDS)
    if _is_settling(observed):
        seconds.append(SETTLE_SECONDS)
    return min(seconds)
