"""Objects of the pool `support` in the namespace `team` as the API server shows them, each with what controls it."""

from __future__ import annotations

from typing import Any

LABELS = {"graft.dev/deployment": "support"}


def pool_body(
    version: int = 1, uid: str = "pool", spec: dict[str, Any] | None = None, **metadata: Any
) -> dict[str, Any]:
    names = {"namespace": "team", "name": "support", "uid": uid, "resourceVersion": str(version), "generation": version}
    return {"metadata": {**names, **metadata}, "spec": spec or {}}


def child_body(kind: str, name: str, owner: str | None = "pool", version: int = 1, **more: Any) -> dict[str, Any]:
    """Make an object of the pool. `owner`: the UID of what controls it; None: nothing does."""
    owners = [] if owner is None else [{"kind": "Any", "name": "any", "uid": owner, "controller": True}]
    metadata = {
        "namespace": "team",
        "name": name,
        "uid": f"{kind}-{name}",
        "resourceVersion": str(version),
        "labels": LABELS,
        "ownerReferences": owners,
    }
    return {"metadata": metadata, **more}


def deployment_body(owner: str | None = "pool") -> dict[str, Any]:
    return child_body("Deployment", "support", owner, spec={"template": {"metadata": {}}})


def replica_set_body(owner: str | None = "Deployment-support") -> dict[str, Any]:
    return child_body("ReplicaSet", "support-1", owner)


def pod_body(
    name: str = "support-1-x", version: int = 1, owner: str | None = "ReplicaSet-support-1", **status: Any
) -> dict[str, Any]:
    return child_body("Pod", name, owner, version, status=status)


def makers() -> list[tuple[str, dict[str, Any]]]:
    """Return the pool and what its pods are made by."""
    return [
        ("AdapterDeployment", pool_body()),
        ("Deployment", deployment_body()),
        ("ReplicaSet", replica_set_body()),
    ]
