"""The status of one adapter: on how many pods it is ready, and why not on all."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet, AdapterVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.conditions import timestamp
from graft_operator.decisions.observed import Observed, PodView
from graft_operator.objects import Pool
from graft_operator.resource import MAX_HISTORY, AdapterStatus, EarlierVersion

_PASSING = frozenset(code for code in ErrorCode if code.passes)


def is_ready(adapter: AdapterStatus) -> bool:
    """Tell whether it is ready on every desired pod, in the version that the spec asks for."""
    return adapter.reason is None and 0 < adapter.desired_replicas <= adapter.ready_replicas


def is_failed(adapter: AdapterStatus) -> bool:
    """Tell whether it has a fault that does not pass by itself."""
    return adapter.reason is not None and not passes(adapter) and counts(adapter)


def passes(adapter: AdapterStatus) -> bool:
    """Tell whether why it is not ready passes by itself."""
    return adapter.reason in _PASSING


def counts(adapter: AdapterStatus) -> bool:
    """Tell whether the pool is to serve it; one outside the merge of a merged pool is not."""
    return adapter.reason != ErrorCode.POOL_IS_MERGED


def full_message(adapter: AdapterStatus) -> str:
    """Return the message, prefixed with the adapter's name unless it already starts with it."""
    name, message = f"adapter `{adapter.name}`", adapter.message or ""
    return message if message.startswith(name) else f"{name}: {message}"


@dataclass(frozen=True)
class Told:
    """What a pod says of an adapter, and what its set names."""

    entry: AdapterEntry
    report: AdapterReport

    @property
    def answers(self) -> bool:
        """Tell whether the version that is to answer does."""
        answering = self.entry.answering_digest
        return answering is not None and (
            answering == self.report.serving or (self.report.ready and answering == self.report.digest)
        )

    @property
    def is_of_wanted(self) -> bool:
        """Tell whether it speaks of the version that the set wants."""
        return self.report.digest == self.entry.digest


def told_by_name(
    observed: Observed, pods: Sequence[PodView], sets: Mapping[str, AdapterSet]
) -> Mapping[str, Sequence[Told]]:
    """Return what the pods report of the very versions that their sets name."""
    entries = {
        config_hash: {entry.name: entry for entry in adapter_set.adapters} for config_hash, adapter_set in sets.items()
    }
    told: dict[str, list[Told]] = defaultdict(list)
    for pod in pods:
        status = observed.report(pod)
        named = entries.get(status.config_hash, {}) if status is not None else {}
        for report in status.adapters if status is not None else ():
            if report.name in named:
                told[report.name].append(Told(named[report.name], report))
    return {name: [one for one in each if one.is_of_wanted or one.answers] for name, each in told.items()}


def adapter_status(
    pool: Pool, observed: Observed, plan: AdapterPlan, told: Sequence[Told], now: float
) -> AdapterStatus:
    """Make the status of one adapter.

    Args:
        told: what the pods say of it, as `told_by_name` has it.
        now: Unix seconds.
    """
    before = observed.status_of(plan.wanted.owner, plan.wanted.name)
    answering = plan.entry.answering if plan.entry is not None else None
    fault = _adapter_fault(pool, observed, plan, told)
    versions = _versions(plan.entry, before, told)
    return AdapterStatus(
        name=plan.wanted.name,
        **versions,
        history=_history(before, versions.get("digest"), now),
        ready_replicas=sum(one.answers for one in told),
        desired_replicas=pool.spec.replicas if fault is None or fault.code is not ErrorCode.POOL_IS_MERGED else 0,
        **_shown_facts_of(answering, before, told),
        reason=None if fault is None else fault.code.value,
        message=None if fault is None else fault.message,
    )


def _history(before: AdapterStatus | None, digest: str | None, now: float) -> tuple[EarlierVersion, ...]:
    """Return what was served before `digest`, the newest first."""
    if before is None:
        return ()
    known = before.history
    if before.digest is not None and before.digest != digest:
        until = timestamp(now)
        last = EarlierVersion(digest=before.digest, uri=before.uri, revision=before.revision, until=until)
        known = (last, *(each for each in known if each.digest != before.digest))
    return tuple(each for each in known if each.digest != digest)[:MAX_HISTORY]


def _versions(entry: AdapterEntry | None, before: AdapterStatus | None, told: Sequence[Told]) -> dict[str, Any]:
    """Return what the status says of the versions: which is served, and which is wanted instead."""
    shown = entry.answering if entry is not None else None
    if entry is None or shown is None:
        source = entry.source if entry is not None else None
        return {"uri": source and source.uri, "requested_revision": source and source.revision}
    served = any(one.answers for one in told) or (before is not None and before.digest == shown.digest)
    return {
        "uri": shown.source.uri,
        "requested_revision": shown.source.revision,
        "revision": shown.revision,
        "digest": shown.digest if served else None,
        "wanted_digest": entry.digest if not served or entry.serving is not None else None,
    }


def _shown_facts_of(
    answering: AdapterVersion | None, before: AdapterStatus | None, told: Sequence[Told]
) -> dict[str, Any]:
    """Return the facts of the version that answers; what was known of it stays while pods speak of another one."""
    digest = answering.digest if answering is not None else None
    reports = [one.report for one in told if one.report.digest == digest]
    shown = next(iter([report for report in reports if report.ready] or reports), None)
    if shown is None and before is not None and before.digest == digest:
        known = before.model_dump()
        return {name: known[name] for name in AdapterFacts.model_fields if name in known}
    return shown_facts(shown.facts if shown is not None else None)


def shown_facts(facts: AdapterFacts | None) -> dict[str, Any]:
    """Return the facts that the status has a field for."""
    known = facts.model_dump() if facts is not None else {}
    return {name: value for name, value in known.items() if name in AdapterStatus.model_fields}


def _adapter_fault(pool: Pool, observed: Observed, plan: AdapterPlan, told: Sequence[Told]) -> Fault | None:
    if plan.fault is not None:
        return Fault.of(plan.fault)
    if plan.unresolved is not None:
        return _fault_of_source(observed, plan, plan.unresolved)
    served = plan.entry.serving if plan.entry is not None else None
    reports = [one.report for one in told if one.is_of_wanted]
    fault = next((report.fault for report in reports if report.fault is not None and not report.ready), None)
    if fault is not None:
        return fault if served is None else _kept(fault, served)
    missing = max(pool.spec.replicas - sum(report.ready for report in reports), 0)
    if served is not None:
        what = f"{missing} more pods have to try the new version; {served.digest} answers until then"
        return Fault(code=ErrorCode.LOADING, message=what)
    if not missing:
        return None
    return Fault(code=ErrorCode.LOADING, message=f"{missing} more pods have to fetch, check and mount it")


def _fault_of_source(observed: Observed, plan: AdapterPlan, source: Source) -> Fault:
    """Return why the digest of the source is not known."""
    resolution = observed.resolutions.get(source)
    if resolution is not None and resolution.fault is not None:
        return resolution.fault
    if plan.entry is not None and plan.entry.fault is not None:
        return plan.entry.fault  # an earlier operator's answer
    return Fault(code=ErrorCode.RESOLVING, message=f"the digest of {source.uri} is being found out")


def _kept(fault: Fault, served: AdapterVersion) -> Fault:
    """Say beside a fault of the wanted version which one goes on answering."""
    what, *hint = fault.message.split("\n\n", 1)
    return Fault(code=fault.code, message="\n\n".join([f"{what}; {served.digest} goes on answering", *hint]))
