"""The PodDisruptionBudget: a drain of nodes takes one pod of a pool at a time."""

from __future__ import annotations

from graft_operator.kinds import POD_DISRUPTION_BUDGET
from graft_operator.objects.pool import KubernetesObject, Pool, metadata_of, selector_of


def build_disruption_budget(pool: Pool) -> KubernetesObject | None:
    """Build a budget of maxUnavailable 1, which blocks no drain, not even of a single pod; None at zero replicas."""
    if pool.spec.replicas == 0:
        return None
    return {
        **POD_DISRUPTION_BUDGET.type_meta,
        "metadata": metadata_of(pool, pool.name),
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": selector_of(pool)}},
    }
