"""What can keep a pool from being as its spec says: small checks over the facts; `verdicts` chains them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graft_runtime.contract.status import BaseState
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from graft_operator.decisions.adapter_status import full_message, is_failed, is_ready
from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.facts import Facts, serves
from graft_operator.decisions.observed import PodView
from graft_operator.decisions.rolls import names_to_keep
from graft_operator.resource import AdapterStatus


@dataclass(frozen=True)
class Finding:
    """What a check has found, in the words of a condition."""

    reason: str
    message: str = ""


Check = Callable[[Facts], Finding | None]


def is_suspended(facts: Facts) -> Finding | None:
    """Find that nothing may be changed."""
    if not facts.pool.spec.suspend:
        return None
    return Finding(Reason.SUSPENDED, "spec.suspend is true: nothing is changed until it is false")


def pool_failed(facts: Facts) -> Finding | None:
    """Find that the pool as a whole can't be made as its spec says."""
    return None if facts.failure is None else Finding(facts.failure.reason, facts.failure.message)


def is_scaled_to_zero(facts: Facts) -> Finding | None:
    """Find that no pod is wanted."""
    return None if facts.pool.spec.replicas else Finding(Reason.SCALED_TO_ZERO, "spec.replicas is 0")


def base_failed(facts: Facts) -> Finding | None:
    """Find a pod of the current RuntimeConfig whose base model can't be served before a person acts."""
    return _base_fault(facts, passes=False)


def base_is_tried_again(facts: Facts) -> Finding | None:
    """Find a pod of the current RuntimeConfig whose base model can't be served now, for a reason that passes."""
    return _base_fault(facts, passes=True)


def speaks_another_version(facts: Facts) -> Finding | None:
    """Find pods that this very spec has made and that can't be understood; earlier ones are on their way out."""
    if not facts.deployed or facts.rollout is None:
        return None
    pods = [pod for pod in facts.observed.newest_pods if pod.template_hash == facts.rollout.pod_template_hash]
    faults = {pod.name: fault for pod in pods if (fault := facts.answer(pod).fault)}
    if not faults:
        return None
    names = sorted(faults)
    return Finding(faults[names[0]].code.value, f"{', '.join(names[:3])}: {faults[names[0]].message}")


def pods_are_stuck(facts: Facts) -> Finding | None:
    """Find a pod of the current template whose container the kubelet can't start, in the kubelet's words."""
    stuck = (pod for pod in sorted(facts.observed.newest_pods, key=lambda pod: pod.name) if pod.stuck)
    return next((Finding(Reason.PODS_STUCK, f"{pod.name}: {pod.trouble}") for pod in stuck), None)


def new_pod_waits(facts: Facts) -> Finding | None:
    """Find a new pod that takes no requests, for it can't serve an adapter that other pods answer for."""
    if facts.rollout is None:
        return None
    names = names_to_keep(facts.observed, facts.rollout.pod_template_hash, facts.pool.spec.replicas)
    for pod in sorted(facts.observed.newest_pods, key=lambda pod: pod.name):
        status = None if pod.ready else facts.report(pod)
        for report in status.adapters if serves(status) and status is not None else ():
            if report.name in names and not report.serving and report.fault and not report.fault.code.passes:
                message = f"pod {pod.name} waits: it can't serve adapter `{report.name}`, which other pods do: "
                return Finding(report.fault.code.value, message + report.fault.message)
    return None


def deadline_exceeded(facts: Facts) -> Finding | None:
    """Find that the Deployment gave up."""
    if facts.rollout is None or facts.rollout.failure is None or facts.pool.spec.replicas == 0:
        return None
    return Finding(Reason.PROGRESS_DEADLINE_EXCEEDED, f"{facts.rollout.failure}{_troubles(facts)}")


def is_rolling_out(facts: Facts) -> Finding | None:
    """Find that pods of the current spec are still to be made."""
    if facts.rolled_out:
        return None
    updated = 0 if facts.rollout is None else facts.rollout.updated
    return Finding(
        Reason.ROLLING_OUT, f"{updated} of {facts.pool.spec.replicas} pods are of this spec{_troubles(facts)}"
    )


def pods_are_not_ready(facts: Facts) -> Finding | None:
    """Find fewer Ready pods than the spec wants."""
    if len(facts.ready_pods) >= facts.pool.spec.replicas:
        return None
    waiting = [f"{pod.name}: {_state_of(facts, pod)}" for pod in facts.pods if not pod.ready]
    why = _troubles(facts) or (f" ({'; '.join(waiting[:3])})" if waiting else "")
    return Finding(Reason.PODS_NOT_READY, f"{len(facts.ready_pods)} of {facts.pool.spec.replicas} pods are Ready{why}")


def pods_are_unreachable(facts: Facts) -> Finding | None:
    """Find pods of which nothing is known."""
    return unreachable(facts) if any(facts.report(pod) is None for pod in facts.pods) else None


def no_ready_pod_says_that_it_serves(facts: Facts) -> Finding | None:
    """Find Ready pods of which none is known to serve anything."""
    if not facts.ready_pods or any(serves(facts.report(pod)) for pod in facts.ready_pods):
        return None
    return unreachable(facts)


def ready_pods_serve_another_mode(facts: Facts) -> Finding | None:
    """Find Ready pods that serve, and none as the spec asks for."""
    if not any(serves(facts.report(pod)) for pod in facts.ready_pods):
        return None
    wanted = "hot mode" if facts.merge_name is None else f"the merge `{facts.merge_name}`"
    return Finding(Reason.ROLLING_OUT, f"the pods that are Ready do not serve {wanted} yet{_troubles(facts)}")


def set_is_pending(facts: Facts) -> Finding | None:
    """Find pods that do not have their current adapter set."""
    pending = [pod.name for pod in facts.pods if not _has_its_set(facts, pod)]
    if not pending:
        return None
    count = counted(len(pending), "pod")
    return Finding(Reason.ADAPTER_SET_PENDING, f"{count} without the current adapter set: {', '.join(pending[:3])}")


def adapters_failed(facts: Facts) -> Finding | None:
    """Find adapters with a fault that needs a person."""
    return _about([adapter for adapter in facts.adapters if is_failed(adapter)], Reason.ADAPTERS_FAILED)


def adapters_are_loading(facts: Facts) -> Finding | None:
    """Find adapters that are neither ready nor failed."""
    loading = [adapter for adapter in facts.adapters if not is_ready(adapter) and not is_failed(adapter)]
    return _about(loading, Reason.ADAPTERS_LOADING)


def unreachable(facts: Facts) -> Finding:
    """Say of which pods nothing is known, and why."""
    silent = [
        f"{pod.name}: {facts.answer(pod).unreachable or 'not asked yet'}"
        for pod in facts.pods
        if not facts.answer(pod).status
    ]
    return Finding(Reason.PODS_UNREACHABLE, "; ".join(silent[:3]) or "no pod serves the base model yet")


def counted(number: int, noun: str) -> str:
    """Return `1 pod`, `2 pods`."""
    return f"{number} {noun}" + ("" if number == 1 else "s")


def _base_fault(facts: Facts, *, passes: bool) -> Finding | None:
    for pod in sorted(facts.observed.newest_pods, key=lambda pod: pod.name):
        status = facts.report(pod)
        if status is None or status.config_hash != facts.current or status.base.state is not BaseState.FAILED:
            continue
        fault = status.base.fault or Fault(code=ErrorCode.INTERNAL, message="the base model failed without a reason")
        if fault.code.passes == passes:
            return Finding(fault.code.value, f"pod {pod.name}: {fault.message}")
    return None


def _state_of(facts: Facts, pod: PodView) -> str:
    status = facts.report(pod)
    if status is None:
        return facts.answer(pod).unreachable or "not asked yet"
    fault = status.base.fault
    return f"base model {status.base.state}" + (f": {fault.code}: {fault.message}" if fault is not None else "")


def _has_its_set(facts: Facts, pod: PodView) -> bool:
    status = facts.report(pod)
    return status is not None and status.adapter_set == facts.versions.get(status.config_hash)


def _troubles(facts: Facts) -> str:
    troubles = [f"{pod.name}: {pod.trouble}" for pod in facts.pods if pod.trouble and not pod.ready]
    return f" ({'; '.join(troubles[:3])})" if troubles else ""


def _about(adapters: Sequence[AdapterStatus], reason: Reason) -> Finding | None:
    """Count them all and quote the first."""
    if not adapters:
        return None
    first = adapters[0]
    others = f" (and {len(adapters) - 1} more)" if len(adapters) > 1 else ""
    return Finding(reason, f"{first.reason or 'Loading'}{others}: {full_message(first)}")
