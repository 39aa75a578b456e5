"""The Service that clients talk to. The control port is not in it."""

from __future__ import annotations

from graft_runtime.contract.ports import API_PORT

from graft_operator.kinds import SERVICE
from graft_operator.objects.pool import KubernetesObject, Pool, metadata_of, selector_of


def build_service(pool: Pool) -> KubernetesObject:
    """Build the Service that routes to the Ready pods of the pool."""
    return {
        **SERVICE.type_meta,
        "metadata": metadata_of(pool, pool.name),
        "spec": {
            "type": "ClusterIP",
            "selector": selector_of(pool),
            "ports": [
                {"name": "http", "port": API_PORT, "targetPort": "http", "protocol": "TCP", "appProtocol": "http"}
            ],
        },
    }


def url_of(pool: Pool) -> str:
    """Return the URL at which clients inside the cluster reach the OpenAI-style API."""
    return f"http://{pool.name}.{pool.namespace}.svc:{API_PORT}/v1"
