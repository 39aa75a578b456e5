"""The status of one adapter: on how many pods it is ready, and why not on all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.observed import Observed, PodView
from graft_operator.objects import Pool
from graft_operator.resource import AdapterStatus

_PASSING = frozenset(code for code in ErrorCode if code.passes)


def is_ready(adapter: AdapterStatus) -> bool:
    """Tell whether it is ready on every desired pod, in the version that the spec asks for."""
    return adapter.reason is None and 0 < adapter.desired_replicas <= adapter.ready_replicas


def is_failed(adapter: AdapterStatus) -> bool:
    """Tell whether it has a fault that does not pass by itself."""
    return adapter.reason is not None and adapter.reason not in _PASSING and counts(adapter)


def counts(adapter: AdapterStatus) -> bool:
    """Tell whether the pool is to serve it; one outside the merge of a merged pool is not."""
    return adapter.reason != ErrorCode.POOL_IS_MERGED


def full_message(adapter: AdapterStatus) -> str:
    """Return the message, prefixed with the adapter's name unless it already starts with it."""
    name, message = f"adapter `{adapter.name}`", adapter.message or ""
    return message if message.startswith(name) else f"{name}: {message}"


def reports_by_name(
    observed: Observed, pods: Sequence[PodView], sets: Mapping[str, AdapterSet]
) -> Mapping[str, Sequence[AdapterReport]]:
    """Return what the pods report of the very digests that their sets name."""
    digests = {
        config_hash: {entry.name: entry.digest for entry in adapter_set.adapters}
        for config_hash, adapter_set in sets.items()
    }
    reports: dict[str, list[AdapterReport]] = defaultdict(list)
    for pod in pods:
        status = observed.report(pod)
        wanted = digests.get(status.config_hash, {}) if status is not None else {}
        for report in status.adapters if status is not None else ():
            if report.name in wanted and wanted[report.name] == report.digest:
                reports[report.name].append(report)
    return reports


def adapter_status(
    pool: Pool, observed: Observed, plan: AdapterPlan, reports: Sequence[AdapterReport]
) -> AdapterStatus:
    """Make the status of one adapter.

    Args:
        reports: what the pods say of it, as `reports_by_name` has it.
    """
    ready = [report for report in reports if report.ready]
    shown = next(iter(ready or reports), None)
    entry = plan.entry
    fault = _adapter_fault(observed, plan, reports, missing=pool.spec.replicas - len(ready))
    return AdapterStatus(
        name=plan.wanted.name,
        uri=entry.source.uri if entry is not None else None,
        requested_revision=entry.source.revision if entry is not None else None,
        ready_replicas=len(ready),
        desired_replicas=pool.spec.replicas if fault is None or fault.code is not ErrorCode.POOL_IS_MERGED else 0,
        digest=entry.digest if entry is not None else None,
        revision=entry.revision if entry is not None else None,
        **shown_facts(shown.facts if shown is not None else None),
        reason=None if fault is None else fault.code.value,
        message=None if fault is None else fault.message,
    )


def shown_facts(facts: AdapterFacts | None) -> dict[str, Any]:
    """Return the facts that the status has a field for."""
    known = facts.model_dump() if facts is not None else {}
    return {name: value for name, value in known.items() if name in AdapterStatus.model_fields}


def _adapter_fault(
    observed: Observed, plan: AdapterPlan, reports: Sequence[AdapterReport], missing: int
) -> Fault | None:
    if plan.fault is not None:
        return Fault.of(plan.fault)
    if plan.unresolved is not None:
        resolution = observed.resolutions.get(plan.unresolved)
        if resolution is not None and resolution.fault is not None:
            return resolution.fault
        if plan.entry is not None and plan.entry.fault is not None:
            return plan.entry.fault  # an earlier operator's answer
        return Fault(code=ErrorCode.RESOLVING, message=f"the digest of {plan.unresolved.uri} is being found out")
    fault = next((report.fault for report in reports if report.fault is not None and not report.ready), None)
    if fault is not None or missing <= 0:
        return fault
    return Fault(code=ErrorCode.LOADING, message=f"{missing} more pods have to fetch, check and mount it")
