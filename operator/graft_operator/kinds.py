"""The kinds of objects that the operator touches. What is not in this table, it never touches.

A kind is added here, and to the chart's RBAC: lists, watches, the store and the paths of requests follow.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from graft_operator.keys import PoolKey

DEPLOYMENT_LABEL = "graft.dev/deployment"


@dataclass(frozen=True)
class Kind:
    """One kind of the Kubernetes API."""

    name: str
    group: str
    """Empty for the core group."""
    version: str
    plural: str
    pool_of: Callable[[Mapping[str, Any]], PoolKey | None] | None = None
    """Return the pool that an object belongs to, or None where it belongs to none. Kinds without it are not watched."""
    selector: str | None = None
    """The label selector of lists and watches; None: all objects."""
    made: bool = False
    """Pools make it: an object is one of theirs only where the pool controls it."""

    @property
    def api_version(self) -> str:
        return f"{self.group}/{self.version}" if self.group else self.version

    @property
    def type_meta(self) -> dict[str, Any]:
        """Return the first two fields of a body."""
        return {"apiVersion": self.api_version, "kind": self.name}

    def path(self, namespace: str | None, name: str | None = None) -> str:
        """Return the URL path of one object, or of all; without a namespace, of those in all namespaces."""
        root = f"/apis/{self.api_version}" if self.group else f"/api/{self.version}"
        place = f"{root}/namespaces/{quote(namespace)}" if namespace else root
        return f"{place}/{self.plural}" + (f"/{quote(name)}" if name else "")


def named_by_itself(body: Mapping[str, Any]) -> PoolKey:
    """Return the key of an object that is a pool."""
    return PoolKey(body["metadata"]["namespace"], body["metadata"]["name"])


def named_by_label(body: Mapping[str, Any]) -> PoolKey | None:
    """Return the key of the pool that the label names."""
    name = (body["metadata"].get("labels") or {}).get(DEPLOYMENT_LABEL)
    return None if name is None else PoolKey(body["metadata"]["namespace"], name)


def named_by_field(body: Mapping[str, Any]) -> PoolKey | None:
    """Return the key of the pool that an Adapter is attached to; None where its spec names none that there can be."""
    name = (body.get("spec") or {}).get("adapterDeploymentName")
    return PoolKey(body["metadata"]["namespace"], name) if isinstance(name, str) and name else None


def _child(name: str, group: str, version: str, plural: str, *, made: bool = True) -> Kind:
    return Kind(name, group, version, plural, named_by_label, DEPLOYMENT_LABEL, made)


ADAPTER_DEPLOYMENT = Kind("AdapterDeployment", "graft.dev", "v1alpha1", "adapterdeployments", named_by_itself)
ADAPTER = Kind("Adapter", "graft.dev", "v1alpha1", "adapters", named_by_field)
CONFIG_MAP = _child("ConfigMap", "", "v1", "configmaps")
DEPLOYMENT = _child("Deployment", "apps", "v1", "deployments")
REPLICA_SET = _child("ReplicaSet", "apps", "v1", "replicasets", made=False)
NETWORK_POLICY = _child("NetworkPolicy", "networking.k8s.io", "v1", "networkpolicies")
POD_DISRUPTION_BUDGET = _child("PodDisruptionBudget", "policy", "v1", "poddisruptionbudgets")
SERVICE = _child("Service", "", "v1", "services")
POD = _child("Pod", "", "v1", "pods", made=False)
EVENT = Kind("Event", "", "v1", "events")
SECRET = Kind("Secret", "", "v1", "secrets")
CLAIM = Kind("PersistentVolumeClaim", "", "v1", "persistentvolumeclaims")
LEASE = Kind("Lease", "coordination.k8s.io", "v1", "leases")

KINDS = {
    kind.name: kind
    for kind in (
        ADAPTER_DEPLOYMENT,
        ADAPTER,
        CONFIG_MAP,
        DEPLOYMENT,
        REPLICA_SET,
        NETWORK_POLICY,
        POD_DISRUPTION_BUDGET,
        SERVICE,
        POD,
        EVENT,
        SECRET,
        CLAIM,
        LEASE,
    )
}


def watched_kinds() -> list[Kind]:
    """Return the kinds that are listed, watched and stored, pools first."""
    return [kind for kind in KINDS.values() if kind.pool_of is not None]
