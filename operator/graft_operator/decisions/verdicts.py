"""The verdicts behind the four conditions: facts in, the first obstacle out. `Ready` is decided nowhere else."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterSetVersion
from graft_runtime.contract.status import BaseState, RuntimeStatus
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from graft_operator.decisions.adapter_status import full_message, is_failed, is_ready
from graft_operator.decisions.conditions import ConditionType, Reason, Verdict
from graft_operator.decisions.observed import Failure, Observed, PodReport, PodView, Rollout
from graft_operator.objects import Pool
from graft_operator.resource import AdapterStatus

Verdicts = tuple[tuple[ConditionType, Verdict], ...]


@dataclass(frozen=True)
class Facts:
    """What the conditions are made from."""

    pool: Pool
    observed: Observed
    failure: Failure | None
    """Why the pool as a whole is not as its spec says; a person must look."""
    template_hash: str | None
    """Of the Deployment that the spec asks for; None where there can't be one."""
    versions: Mapping[str, AdapterSetVersion]
    """Config hash → the version that its pods are to serve."""
    current: str
    """The config hash whose adapter set follows the spec."""
    adapters: tuple[AdapterStatus, ...]
    pods: tuple[PodView, ...]
    """Those that the Deployment wants."""

    @property
    def rollout(self) -> Rollout | None:
        deployment = self.observed.own("Deployment", self.pool.name)
        return None if deployment is None else deployment.rollout

    @property
    def deployed(self) -> bool:
        """The Deployment is what the spec asks for."""
        return self.rollout is not None and self.rollout.template_hash == self.template_hash

    @property
    def rolled_out(self) -> bool:
        """The Deployment is what the spec asks for, and all its pods are."""
        rollout = self.rollout
        return self.deployed and rollout is not None and rollout.settled and rollout.desired == self.pool.spec.replicas

    @property
    def ready_pods(self) -> tuple[PodView, ...]:
        return tuple(pod for pod in self.pods if pod.ready)

    @property
    def merge_name(self) -> str | None:
        """The one name that a merged pool serves."""
        merge = self.pool.spec.merge
        return None if merge is None else merge.name

    def report(self, pod: PodView) -> RuntimeStatus | None:
        return self.observed.report(pod)

    def serves(self, pod: PodView) -> bool:
        """Tell whether the pod answers in the mode that the spec asks for: under the merge's name, or the base's."""
        status = self.report(pod)
        if status is None or not serves(status):
            return False
        return self.merge_name == (None if status.base.merge is None else status.base.merge.name)


def verdicts_of(facts: Facts) -> Verdicts:
    """Return what the four conditions say."""
    ready = _ready(facts)
    stalled = _stalled(facts)
    return (
        (ConditionType.AVAILABLE, _available(facts)),
        (ConditionType.READY, ready),
        (ConditionType.RECONCILING, _reconciling(facts, ready)),
        (ConditionType.STALLED, stalled),
    )


def verdicts_of_failure(failure: Failure, *, served: bool) -> Verdicts:
    """Return the same for a spec that can't be read.

    Args:
        served: a Ready pod serves a base model all the same.
    """
    return (
        (ConditionType.AVAILABLE, _served() if served else _failed(failure)),
        (ConditionType.READY, _failed(failure)),
        (ConditionType.RECONCILING, Verdict(False, Reason.SETTLED)),
        (ConditionType.STALLED, Verdict(True, failure.reason, failure.message)),
    )


def serves(status: RuntimeStatus | None) -> bool:
    """Tell whether the pod of this status answers requests, in whichever mode."""
    return status is not None and status.base.state is BaseState.SERVING


def _available(facts: Facts) -> Verdict:
    if facts.pool.spec.replicas == 0:
        return _scaled_to_zero()
    if any(facts.serves(pod) for pod in facts.ready_pods):
        return _served(facts.merge_name)
    if any(serves(facts.report(pod)) for pod in facts.ready_pods):
        return _base_failed(facts) or _other_mode(facts)
    if facts.ready_pods:
        return _unreachable(facts)
    return _base_failed(facts) or _pods_not_ready(facts) or _unreachable(facts)


def _ready(facts: Facts) -> Verdict:
    """Decide whether a pool is Ready, here and nowhere else: the first obstacle, or none."""
    obstacles = (found for check in _OBSTACLES if (found := check(facts)) is not None)
    return next(obstacles, None) or Verdict(
        True,
        Reason.ALL_READY,
        f"{_count(len(facts.pods), 'pod')}, {_count(len(facts.adapters), 'adapter')}{_as(facts)}",
    )


def _stalled(facts: Facts) -> Verdict:
    if facts.pool.spec.suspend:
        return Verdict(False, Reason.SUSPENDED)
    for check in (_pool_failed, _base_failed, _other_version, _deadline_exceeded, _adapters_failed):
        found = check(facts)
        if found is not None:
            return Verdict(True, found.reason, found.message)
    return Verdict(False, Reason.NO_FAULT)


def _reconciling(facts: Facts, ready: Verdict) -> Verdict:
    """Decide whether something is on its way, whether or not something else needs a person."""
    if ready.holds or facts.pool.spec.suspend:
        return Verdict(False, Reason.SUSPENDED if facts.pool.spec.suspend else Reason.SETTLED)
    if facts.failure is not None:
        return Verdict(False, Reason.SETTLED)
    on_the_way = _not_rolled_out(facts)
    if on_the_way is None and facts.pool.spec.replicas > 0 and _other_version(facts) is None:
        pods = None if _base_failed(facts) else _pods_not_ready(facts)
        on_the_way = pods or _set_pending(facts) or _adapters_loading(facts)
    if on_the_way is None:
        return Verdict(False, Reason.SETTLED)
    return Verdict(True, on_the_way.reason, on_the_way.message)


def _is_suspended(facts: Facts) -> Verdict | None:
    if not facts.pool.spec.suspend:
        return None
    return Verdict(False, Reason.SUSPENDED, "spec.suspend is true: nothing is changed until it is false")


def _pool_failed(facts: Facts) -> Verdict | None:
    return None if facts.failure is None else _failed(facts.failure)


def _is_scaled_to_zero(facts: Facts) -> Verdict | None:
    return _scaled_to_zero() if facts.pool.spec.replicas == 0 else None


def _base_failed(facts: Facts) -> Verdict | None:
    for pod in sorted(facts.observed.newest_pods, key=lambda pod: pod.name):
        status = facts.report(pod)
        if status is not None and status.config_hash == facts.current and status.base.state is BaseState.FAILED:
            fault = status.base.fault or Fault(
                code=ErrorCode.INTERNAL, message="the base model failed without a reason"
            )
            return Verdict(False, fault.code.value, f"pod {pod.name}: {fault.message}")
    return None


def _other_version(facts: Facts) -> Verdict | None:
    """Of the pods that this very spec has made; earlier ones are on their way out."""
    faults = {
        pod.name: fault
        for pod in facts.observed.newest_pods
        if facts.rollout is not None and pod.template_hash == facts.rollout.pod_template_hash
        if (fault := facts.observed.reports.get(pod.uid, PodReport()).fault)
    }
    if not facts.deployed or not faults:
        return None
    fault = next(iter(faults.values()))
    return Verdict(False, fault.code.value, f"{', '.join(sorted(faults)[:3])}: {fault.message}")


def _deadline_exceeded(facts: Facts) -> Verdict | None:
    if facts.rollout is None or facts.rollout.failure is None or facts.pool.spec.replicas == 0:
        return None
    return Verdict(False, Reason.PROGRESS_DEADLINE_EXCEEDED, f"{facts.rollout.failure}{_troubles(facts)}")


def _not_rolled_out(facts: Facts) -> Verdict | None:
    if facts.rolled_out:
        return None
    updated = 0 if facts.rollout is None else facts.rollout.updated
    return Verdict(
        False, Reason.ROLLING_OUT, f"{updated} of {facts.pool.spec.replicas} pods are of this spec{_troubles(facts)}"
    )


def _pods_not_ready(facts: Facts) -> Verdict | None:
    if len(facts.ready_pods) >= facts.pool.spec.replicas:
        return None
    waiting = [f"{pod.name}: {_state_of(facts, pod)}" for pod in facts.pods if not pod.ready]
    told = _troubles(facts) or (f" ({'; '.join(waiting[:3])})" if waiting else "")
    ready = f"{len(facts.ready_pods)} of {facts.pool.spec.replicas} pods are Ready"
    return Verdict(False, Reason.PODS_NOT_READY, ready + told)


def _state_of(facts: Facts, pod: PodView) -> str:
    status = facts.report(pod)
    if status is None:
        return facts.observed.reports.get(pod.uid, PodReport()).unreachable or "not asked yet"
    fault = status.base.fault
    return f"base model {status.base.state}" + (f": {fault.code}: {fault.message}" if fault is not None else "")


def _pods_unreachable(facts: Facts) -> Verdict | None:
    return _unreachable(facts) if any(facts.report(pod) is None for pod in facts.pods) else None


def _set_pending(facts: Facts) -> Verdict | None:
    pending = [pod for pod in facts.pods if not _has_its_set(facts, pod)]
    if not pending:
        return None
    names = ", ".join(pod.name for pod in pending[:3])
    return Verdict(
        False, Reason.ADAPTER_SET_PENDING, f"{_count(len(pending), 'pod')} without the current adapter set: {names}"
    )


def _adapters_failed(facts: Facts) -> Verdict | None:
    failed = [adapter for adapter in facts.adapters if is_failed(adapter)]
    return _about(failed, Reason.ADAPTERS_FAILED) if failed else None


def _adapters_loading(facts: Facts) -> Verdict | None:
    loading = [adapter for adapter in facts.adapters if not is_ready(adapter) and not is_failed(adapter)]
    return _about(loading, Reason.ADAPTERS_LOADING) if loading else None


Obstacle = Callable[[Facts], Verdict | None]
_OBSTACLES: tuple[Obstacle, ...] = (
    _is_suspended,
    _pool_failed,
    _is_scaled_to_zero,
    _base_failed,  # before the roll that it holds up
    _other_version,
    _deadline_exceeded,
    _not_rolled_out,
    _pods_not_ready,
    _pods_unreachable,
    _set_pending,
    _adapters_failed,
    _adapters_loading,
)


def _failed(failure: Failure) -> Verdict:
    return Verdict(False, failure.reason, failure.message)


def _scaled_to_zero() -> Verdict:
    return Verdict(False, Reason.SCALED_TO_ZERO, "spec.replicas is 0")


def _served(merge_name: str | None = None) -> Verdict:
    if merge_name is not None:
        return Verdict(True, Reason.MERGE_SERVED, f"the merge `{merge_name}` is served")
    return Verdict(True, Reason.BASE_SERVED, "the base model is served")


def _other_mode(facts: Facts) -> Verdict:
    wanted = "hot mode" if facts.merge_name is None else f"the merge `{facts.merge_name}`"
    return Verdict(False, Reason.ROLLING_OUT, f"the pods that are Ready do not serve {wanted} yet{_troubles(facts)}")


def _as(facts: Facts) -> str:
    return "" if facts.merge_name is None else f" merged as `{facts.merge_name}`"


def _unreachable(facts: Facts) -> Verdict:
    reports = [(pod, facts.observed.reports.get(pod.uid, PodReport())) for pod in facts.pods]
    silent = [f"{pod.name}: {report.unreachable or 'not asked yet'}" for pod, report in reports if not report.status]
    return Verdict(False, Reason.PODS_UNREACHABLE, "; ".join(silent[:3]) or "no pod serves the base model yet")


def _has_its_set(facts: Facts, pod: PodView) -> bool:
    status = facts.report(pod)
    return status is not None and status.adapter_set == facts.versions.get(status.config_hash)


def _troubles(facts: Facts) -> str:
    told = [f"{pod.name}: {pod.trouble}" for pod in facts.pods if pod.trouble and not pod.ready]
    return f" ({'; '.join(told[:3])})" if told else ""


def _about(adapters: Sequence[AdapterStatus], reason: Reason) -> Verdict:
    """Count all of them and quote the first."""
    first = adapters[0]
    others = f" (and {len(adapters) - 1} more)" if len(adapters) > 1 else ""
    return Verdict(False, reason, f"{first.reason or 'Loading'}{others}: {full_message(first)}")


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
