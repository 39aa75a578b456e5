"""The NetworkPolicy: the API port is open to all, the control port to the operator alone, metrics to who is named."""

from __future__ import annotations

from graft_runtime.contract.ports import API_PORT, CONTROL_PORT, PROBE_PORT

from graft_operator.kinds import NETWORK_POLICY
from graft_operator.objects.pool import (
    COMPONENT_LABEL,
    OPERATOR_COMPONENT,
    KubernetesObject,
    Pool,
    metadata_of,
    selector_of,
)
from graft_operator.settings import Settings

METRICS_LABEL = "graft.dev/metrics"
"""Of namespaces whose pods may read metrics, with the value `scraped`."""


def build_network_policy(pool: Pool, settings: Settings) -> KubernetesObject:
    """Build the second guard of the control port; the first is its token."""
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
        "podSelector": {"matchLabels": {COMPONENT_LABEL: OPERATOR_COMPONENT}},
    }
    scrapers = {"namespaceSelector": {"matchLabels": {METRICS_LABEL: "scraped"}}}
    return {
        **NETWORK_POLICY.type_meta,
        "metadata": metadata_of(pool, pool.name),
        "spec": {
            "podSelector": {"matchLabels": selector_of(pool)},
            "policyTypes": ["Ingress"],
            "ingress": [
                {"ports": [{"port": API_PORT, "protocol": "TCP"}]},
                {"from": [operator], "ports": [{"port": CONTROL_PORT, "protocol": "TCP"}]},
                # The kubelet comes from the pod's own node, which no policy keeps out.
                {"from": [scrapers], "ports": [{"port": PROBE_PORT, "protocol": "TCP"}]},
            ],
        },
    }
