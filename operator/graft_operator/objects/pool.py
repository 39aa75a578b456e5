"""A pool, and what its objects are called and labelled."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from graft_operator.kinds import ADAPTER_DEPLOYMENT, DEPLOYMENT_LABEL
from graft_operator.resource import AdapterDeploymentSpec

KubernetesObject = dict[str, Any]

CONFIG_HASH_LABEL = "graft.dev/config-hash"
TEMPLATE_HASH_ANNOTATION = "graft.dev/template-hash"
# On the operator's own pods, by the chart: the one peer that the control port is open to.
COMPONENT_LABEL = "graft.dev/component"
OPERATOR_COMPONENT = "operator"


@dataclass(frozen=True)
class Pool:
    """What the builders need to know of one AdapterDeployment."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: AdapterDeploymentSpec


def config_name(pool: Pool, config_hash: str) -> str:
    """Return the name of the ConfigMap with the RuntimeConfig."""
    return f"{pool.name}-config-{config_hash}"


def adapter_set_name(pool: Pool, config_hash: str) -> str:
    """Return the name of the ConfigMap with the adapter set of the pods of one RuntimeConfig."""
    return f"{pool.name}-set-{config_hash}"


def keys_name(pool: Pool) -> str:
    """Return the name of the ConfigMap with the public keys that the control port trusts."""
    return f"{pool.name}-keys"


def selector_of(pool: Pool) -> dict[str, str]:
    """Return the labels that pick the pool's pods, whatever their RuntimeConfig."""
    return {DEPLOYMENT_LABEL: pool.name}


def labels_of(pool: Pool) -> dict[str, str]:
    """Return the labels of every object of the pool."""
    return {
        "app.kubernetes.io/name": "graft-runtime",
        "app.kubernetes.io/instance": pool.name,
        "app.kubernetes.io/managed-by": "graft",
        **selector_of(pool),
    }


def owner_reference(pool: Pool) -> dict[str, Any]:
    """Return the owner reference by which the garbage collector removes an object with its pool, and we know ours."""
    return {
        **ADAPTER_DEPLOYMENT.type_meta,
        "name": pool.name,
        "uid": pool.uid,
        "controller": True,
        "blockOwnerDeletion": True,
    }


def metadata_of(pool: Pool, name: str) -> dict[str, Any]:
    """Return the metadata of an object of the pool."""
    return {
        "name": name,
        "namespace": pool.namespace,
        "labels": labels_of(pool),
        "ownerReferences": [owner_reference(pool)],
    }
