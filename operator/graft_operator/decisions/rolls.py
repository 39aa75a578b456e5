"""What pods that are born must not lose: the names that others answer under already.

A new pod takes no requests before it answers under the names that its set requires. So a roll whose pods can't serve an
adapter holds, and the old ones go on; and a pod that comes beside others takes no requests that it alone would refuse.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.observed import Observed, PodView


def required_adapters(
    adapters: Iterable[AdapterPlan], observed: Observed, pod_template_hash: str | None, replicas: int
) -> tuple[AdapterPlan, ...]:
    """Require of new pods what those answer under that they are to replace, or to stand beside.

    Args:
        pod_template_hash: of the pod template that the spec asks for; None where there can't be one.
        replicas: how many pods it asks for.
    """
    names = names_to_keep(observed, pod_template_hash, replicas)
    return tuple(_require(plan, names) for plan in adapters)


def names_to_keep(observed: Observed, pod_template_hash: str | None, replicas: int) -> frozenset[str]:
    """Return the names that Ready pods answer under, while more are to come; none where no new pod can be made."""
    if pod_template_hash is None:
        return frozenset()
    ready = [pod for pod in observed.pods if pod.ready and pod.counts]
    newest = [pod for pod in ready if pod.template_hash == pod_template_hash]
    if len(newest) == len(ready) >= replicas:
        return frozenset()
    return frozenset(name for pod in ready for name in _names_answered(observed, pod))


def _names_answered(observed: Observed, pod: PodView) -> Iterable[str]:
    status = observed.report(pod)
    if status is None or status.base.merge is not None:  # a merge answers under its own name alone
        return ()
    return (one.name for one in status.adapters if one.ready or one.serving)


def _require(plan: AdapterPlan, names: frozenset[str]) -> AdapterPlan:
    if plan.entry is None or plan.entry.answering_digest is None:
        return plan
    required = plan.entry.name in names
    if required == plan.entry.required:
        return plan
    return replace(plan, entry=plan.entry.model_copy(update={"required": required}))
