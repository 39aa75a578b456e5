"""The NetworkPolicy: who may ask a pool's pods on which port, and what those may ask."""

from __future__ import annotations

from typing import Any

from graft_runtime.contract.ports import API_PORT, CONTROL_PORT, PROBE_PORT
from graft_runtime.contract.schemes import SCHEMES

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
DNS_PORT = 53
_NOT_PUBLIC = (
    *("0.0.0.0/8", "10.0.0.0/8", "100.64.0.0/10", "127.0.0.0/8", "168.63.129.16/32", "169.254.0.0/16"),
    *("172.16.0.0/12", "192.0.0.0/24", "192.168.0.0/16", "198.18.0.0/15", "224.0.0.0/4", "240.0.0.0/4"),
)
_PUBLIC = ({"cidr": "0.0.0.0/0", "except": [*_NOT_PUBLIC]}, {"cidr": "2000::/3"})


def build_network_policy(pool: Pool, settings: Settings) -> KubernetesObject:
    """Build the second guard of the control port, whose first is its token, and of what pods connect to.

    Policies add up: whoever wants more opened writes another one.
    """
    operator = {
        "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": settings.namespace}},
        "podSelector": {"matchLabels": {COMPONENT_LABEL: OPERATOR_COMPONENT}},
    }
    peers, control = {"podSelector": {"matchLabels": selector_of(pool)}}, {"port": CONTROL_PORT, "protocol": "TCP"}
    scrapers = {"namespaceSelector": {"matchLabels": {METRICS_LABEL: "scraped"}}}
    clients = {"from": [*settings.api_peers]} if settings.api_peers else {}
    return {
        **NETWORK_POLICY.type_meta,
        "metadata": metadata_of(pool, pool.name),
        "spec": {
            "podSelector": {"matchLabels": selector_of(pool)},
            "policyTypes": ["Ingress", "Egress"],
            "ingress": [
                {**clients, "ports": [{"port": API_PORT, "protocol": "TCP"}]},
                {"from": [operator, peers], "ports": [control]},
                # The kubelet comes from the pod's own node, which no policy keeps out.
                {"from": [scrapers], "ports": [{"port": PROBE_PORT, "protocol": "TCP"}]},
            ],
            "egress": [{"to": [peers], "ports": [control]}, *_egress(settings)],
        },
    }


def _egress(settings: Settings) -> list[dict[str, Any]]:
    """Return what pods may ask but each other: nothing where sources are mounted, else DNS and where these may be."""
    if not any(SCHEMES[name].mount == "remote" for name in settings.allowed_schemes):
        return []
    networks = [*_PUBLIC, *({"cidr": network} for network in sorted(settings.allowed_networks))]
    return [
        {"ports": [{"port": DNS_PORT, "protocol": protocol} for protocol in ("UDP", "TCP")]},
        {"to": [{"ipBlock": network} for network in networks]},
    ]
