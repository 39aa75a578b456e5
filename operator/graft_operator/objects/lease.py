"""The Lease that says which of several operators leads."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from graft_operator.kinds import LEASE
from graft_operator.objects.pool import KubernetesObject


def build_lease(
    namespace: str, name: str, *, holder: str | None, seconds: int, acquired: float, renewed: float, transitions: int
) -> KubernetesObject:
    """Build the Lease.

    Args:
        holder: who leads; None: nobody, whoever asks next may have it.
        seconds: for how long after it was renewed nobody else may take it.
        acquired, renewed: Unix seconds.
        transitions: how often another one came to lead.
    """
    spec: dict[str, Any] = {
        "leaseDurationSeconds": seconds,
        "acquireTime": _micro_time(acquired),
        "renewTime": _micro_time(renewed),
        "leaseTransitions": transitions,
    }
    return {
        **LEASE.type_meta,
        "metadata": {
            "namespace": namespace,
            "name": name,
            "labels": {"app.kubernetes.io/managed-by": "graft"},
        },
        "spec": spec if holder is None else spec | {"holderIdentity": holder},
    }


def _micro_time(seconds: float) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
