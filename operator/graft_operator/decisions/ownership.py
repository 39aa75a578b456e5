"""Whose an object is that bears the name of one of a pool's: labels and owner references are easily taken off."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_operator.decisions.readers import controller_uid
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.settings import FIELD_MANAGER


def is_ours(body: Mapping[str, Any], pool_uid: str) -> bool:
    """Tell whether the pool may have an object: it controls it, or nobody does and an operator of Graft has made it."""
    controller = controller_uid(body)
    return controller == pool_uid or (controller is None and _is_applied_by_us(body))


def is_left_over(body: Mapping[str, Any], pool_name: str, pool_uid: str) -> bool:
    """Tell whether an object is of a pool of the same name that was deleted: the garbage collector is on its way."""
    owners = body["metadata"].get("ownerReferences") or ()
    pools = (owner for owner in owners if owner["kind"] == ADAPTER_DEPLOYMENT.name)
    return any(owner["name"] == pool_name and owner["uid"] != pool_uid for owner in pools)


def _is_applied_by_us(body: Mapping[str, Any]) -> bool:
    entries = body["metadata"].get("managedFields") or ()
    return any((entry.get("manager"), entry.get("operation")) == (FIELD_MANAGER, "Apply") for entry in entries)
