"""The status of a pool: one function makes the whole of it, and with it the four conditions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.status import BaseReport

from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.adapter_status import adapter_status, counts, is_failed, is_ready, told_by_name
from graft_operator.decisions.conditions import dated
from graft_operator.decisions.facts import Facts, serves
from graft_operator.decisions.observed import MAX_SETS, Failure, Observed, PodView
from graft_operator.decisions.verdicts import verdicts_of, verdicts_of_failure
from graft_operator.keys import ObjectKey
from graft_operator.objects import Pool, selector_of, url_of
from graft_operator.resource import (
    AdapterCounts,
    AdapterDeploymentStatus,
    AdapterSetStatus,
    AdapterStatus,
    BaseModelStatus,
    MergedAdapterStatus,
    MergeStatus,
)


def adapter_statuses(
    pool: Pool, observed: Observed, sets: Mapping[str, AdapterSet], adapters: Sequence[AdapterPlan], now: float
) -> Mapping[tuple[ObjectKey, str], AdapterStatus]:
    """Return who asks for an adapter, and its name → its status after a pass.

    Args:
        sets: config hash → the set that its pods are to serve.
        now: Unix seconds.
    """
    told = told_by_name(observed, _pods(observed), sets)
    return {
        (plan.wanted.owner, plan.wanted.name): adapter_status(pool, observed, plan, told.get(plan.wanted.name, ()), now)
        for plan in adapters
    }


def make_status(
    pool: Pool,
    observed: Observed,
    *,
    failure: Failure | None,
    template_hash: str | None,
    sets: Mapping[str, AdapterSet],
    current: str,
    adapters: Mapping[tuple[ObjectKey, str], AdapterStatus],
    now: float,
) -> AdapterDeploymentStatus:
    """Make the status of `pool` after a pass.

    Args:
        failure: why the pool as a whole can't be made as its spec says.
        template_hash: of the Deployment that the spec asks for; None where there can't be one.
        sets: config hash → the set that its pods are to serve.
        current: the config hash whose set follows the spec.
        adapters: those of the spec, and attached ones, which are but counted: their own objects tell of them.
        now: Unix seconds.
    """
    pods = _pods(observed)
    versions = {config_hash: adapter_set.version for config_hash, adapter_set in sets.items()}
    inline = tuple(status for (owner, _), status in adapters.items() if owner == observed.pool.key)
    counted = [status for status in adapters.values() if counts(status)]
    facts = Facts(
        pool=pool,
        observed=observed,
        failure=failure,
        template_hash=template_hash,
        versions=versions,
        current=current,
        adapters=tuple(status for status in inline if counts(status)),
        pods=pods,
    )
    base = _base_report(facts)
    return AdapterDeploymentStatus(
        observed_generation=pool.generation,
        conditions=dated(verdicts_of(facts), observed.pool.status.conditions, pool.generation, now),
        adapter_sets=_set_statuses(versions, current),
        replicas=len(pods),
        ready_replicas=len(facts.ready_pods),
        selector=",".join(f"{key}={value}" for key, value in sorted(selector_of(pool).items())),
        url=url_of(pool),
        base_model=_base_status(base),
        merge=_merge_status(base),
        adapter_counts=AdapterCounts(
            desired=len(counted),
            ready=sum(is_ready(adapter) for adapter in counted),
            failed=sum(is_failed(adapter) for adapter in counted),
        ),
        adapters=inline,
        applied_hash=observed.pool.status.applied_hash,
    )


def failed_status(observed: Observed, failure: Failure, now: float) -> AdapterDeploymentStatus:
    """Make the status of a pool whose spec can't be read: what was known stays, the conditions say why."""
    before = observed.pool.status
    pods = [pod for pod in observed.pods if pod.counts]
    served = any(pod.ready and serves(observed.report(pod)) for pod in pods)
    verdicts = verdicts_of_failure(failure, served=served)
    generation = observed.pool.generation
    return before.model_copy(
        update={
            "observed_generation": generation,
            "conditions": dated(verdicts, before.conditions, generation, now),
            "replicas": len(pods),
            "ready_replicas": sum(pod.ready for pod in pods),
        }
    )


def _pods(observed: Observed) -> tuple[PodView, ...]:
    return tuple(sorted((pod for pod in observed.pods if pod.counts), key=lambda pod: pod.name))


def _set_statuses(versions: Mapping[str, AdapterSetVersion], current: str) -> tuple[AdapterSetStatus, ...]:
    ordered = sorted(versions.items(), key=lambda item: (item[0] != current, -item[1].generation))
    return tuple(
        AdapterSetStatus(config_hash=config_hash, generation=version.generation, hash=version.hash)
        for config_hash, version in ordered[:MAX_SETS]
    )


def _base_report(facts: Facts) -> BaseReport | None:
    """Return the base of a pod that serves, of the current spec if possible."""
    statuses = [status for pod in facts.pods if (status := facts.report(pod))]
    current = [status for status in statuses if status.config_hash == facts.current]
    return next((status.base for status in (*current, *statuses) if serves(status)), None)


def _merge_status(base: BaseReport | None) -> MergeStatus | None:
    merge = None if base is None else base.merge
    if merge is None:
        return None
    parts = tuple(
        MergedAdapterStatus(name=part.name, weight=part.weight, digest=part.digest) for part in merge.adapters
    )
    return MergeStatus(name=merge.name, adapters=parts)


def _base_status(base: BaseReport | None) -> BaseModelStatus | None:
    if base is None:
        return None
    return BaseModelStatus(name=base.name, digest=base.digest, revision=base.revision, runner=base.runner)
