"""What a roll must not lose: the names that pods answer under, while others take their place.

A new pod takes no requests before it answers under the names that its set requires. So a roll whose pods can't serve an
adapter holds, and the old ones go on.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.observed import Observed, PodView


def required_adapters(
    adapters: Iterable[AdapterPlan], observed: Observed, pod_template_hash: str | None
) -> tuple[AdapterPlan, ...]:
    """Require of new pods what those answer under that they are to replace.

    Args:
        pod_template_hash: of the pod template that the spec asks for; None where there can't be one.
    """
    names = names_to_keep(observed, pod_template_hash)
    return tuple(_require(plan, names) for plan in adapters)


def names_to_keep(observed: Observed, pod_template_hash: str | None) -> frozenset[str]:
    """Return the names that Ready pods of other templates answer under; none where nothing can replace them."""
    if pod_template_hash is None:
        return frozenset()
    old = (pod for pod in observed.pods if pod.ready and pod.counts and pod.template_hash != pod_template_hash)
    return frozenset(name for pod in old for name in _names_answered(observed, pod))


def _names_answered(observed: Observed, pod: PodView) -> Iterable[str]:
    status = observed.report(pod)
    if status is None or status.base.merge is not None:  # a merge answers under its own name alone
        return ()
    return (one.name for one in status.adapters if one.ready or one.serving)


def _require(plan: AdapterPlan, names: frozenset[str]) -> AdapterPlan:
    if plan.entry is None or plan.entry.answering is None:
        return plan
    return replace(plan, entry=plan.entry.model_copy(update={"required": plan.entry.name in names}))
