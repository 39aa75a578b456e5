"""The Event about one of our objects, as `kubectl describe` shows it."""

from __future__ import annotations

from typing import Literal

from graft_operator.keys import ObjectKey
from graft_operator.kinds import EVENT, KINDS
from graft_operator.objects.pool import KubernetesObject

COMPONENT = "graft-operator"
MAX_MESSAGE = 1000
"""The API server takes 1024 bytes."""


def build_event(
    about: ObjectKey, uid: str, *, kind: Literal["Normal", "Warning"], reason: str, message: str, at: str
) -> KubernetesObject:
    """Build an Event.

    Args:
        uid: of the object that it is about.
        at: when it happened, as `2026-01-31T12:00:00Z`.
    """
    involved = {**KINDS[about.kind].type_meta, "namespace": about.namespace, "name": about.name, "uid": uid}
    return {
        **EVENT.type_meta,
        "metadata": {"namespace": about.namespace, "generateName": f"{about.name}."},
        "involvedObject": involved,
        "type": kind,
        "reason": reason,
        "message": message[:MAX_MESSAGE],
        "source": {"component": COMPONENT},
        "reportingComponent": COMPONENT,
        "reportingInstance": "",
        "firstTimestamp": at,
        "lastTimestamp": at,
        "count": 1,
    }
