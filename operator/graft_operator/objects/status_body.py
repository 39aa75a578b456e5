"""The body of a write to the status subresource of one of our objects."""

from __future__ import annotations

from pydantic import BaseModel

from graft_operator.keys import ObjectKey
from graft_operator.kinds import KINDS
from graft_operator.objects.pool import KubernetesObject


def build_status_body(about: ObjectKey, resource_version: str, status: BaseModel) -> KubernetesObject:
    """Build the body of a server-side apply; it conflicts unless the object is at `resource_version`."""
    return {
        **KINDS[about.kind].type_meta,
        "metadata": {"namespace": about.namespace, "name": about.name, "resourceVersion": resource_version},
        "status": status.model_dump(mode="json", by_alias=True, exclude_none=True),
    }
