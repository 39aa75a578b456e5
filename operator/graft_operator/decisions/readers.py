"""From the objects of the Kubernetes API to the slim views that decisions are made upon."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from graft_runtime.errors import GraftError, cut
from pydantic import BaseModel, ValidationError

from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.fingerprint import fingerprint
from graft_operator.decisions.foreign_fields import foreign_pointers
from graft_operator.decisions.observed import AdapterView, Child, Failure, PodView, PoolView, Rollout
from graft_operator.decisions.pod_trouble import find_condition, is_stuck, pod_trouble, told
from graft_operator.kinds import CONFIG_MAP, DEPLOYMENT
from graft_operator.objects import CONFIG_HASH_LABEL, TEMPLATE_HASH_ANNOTATION
from graft_operator.resource import AdapterDeploymentStatus, AttachedAdapterSpec, AttachedAdapterStatus, parse_attached

Status = TypeVar("Status", bound=BaseModel)

REFRESH_ANNOTATION = "graft.dev/refresh"
"""Of an AdapterDeployment: whenever its value changes, the sources of its adapters are looked at again."""


def read_pool(body: Mapping[str, Any]) -> PoolView:
    """Read an AdapterDeployment."""
    metadata = body["metadata"]
    return PoolView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=body.get("spec") or {},
        status=_status(body, AdapterDeploymentStatus),
        deleting="deletionTimestamp" in metadata,
        resource_version=metadata.get("resourceVersion", ""),
        refresh=str((metadata.get("annotations") or {}).get(REFRESH_ANNOTATION, "")),
    )


def read_adapter(body: Mapping[str, Any]) -> AdapterView:
    """Read an Adapter."""
    metadata = body["metadata"]
    spec: AttachedAdapterSpec | Failure
    try:
        spec = parse_attached(body.get("spec") or {})
    except GraftError as error:
        spec = Failure(Reason.INVALID_SPEC, error.message)
    return AdapterView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        created=str(metadata.get("creationTimestamp", "")),
        spec=spec,
        status=_status(body, AttachedAdapterStatus),
        deleting="deletionTimestamp" in metadata,
        resource_version=metadata.get("resourceVersion", ""),
    )


def _status(body: Mapping[str, Any], kind: type[Status]) -> Status:
    """Return what was told last; of what another version wrote nothing: the next pass writes it anew."""
    try:
        return kind.model_validate(body.get("status") or {})
    except ValidationError:
        return kind()


def read_child(kind: str, body: Mapping[str, Any]) -> Child:
    """Read a Deployment, ConfigMap, Service, PodDisruptionBudget or NetworkPolicy that a pool controls."""
    metadata = body["metadata"]
    return Child(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        owner_uid=controller_uid(body),
        fingerprint=fingerprint(body),
        foreign=bool(foreign_pointers(body)),
        config_hash=(metadata.get("labels") or {}).get(CONFIG_HASH_LABEL),
        rollout=_read_rollout(body) if kind == DEPLOYMENT.name else None,
        binary_data=body.get("binaryData") or {} if kind == CONFIG_MAP.name else {},
        deleting="deletionTimestamp" in metadata,
    )


def read_pod(body: Mapping[str, Any]) -> PodView:
    """Read a pod."""
    metadata, status = body["metadata"], body.get("status") or {}
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        owner_uid=controller_uid(body),
        ip=status.get("podIP") or None,
        config_hash=(metadata.get("labels") or {}).get(CONFIG_HASH_LABEL),
        ready=find_condition(status, "Ready").get("status") == "True",
        template_hash=(metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION),
        deleting="deletionTimestamp" in metadata,
        ended=status.get("phase") in ("Succeeded", "Failed"),
        trouble=pod_trouble(body),
        stuck=is_stuck(body),
        resource_version=metadata.get("resourceVersion", ""),
    )


def controller_uid(body: Mapping[str, Any]) -> str | None:
    """Return the UID of what controls an object, and would have it deleted with itself."""
    owners = body["metadata"].get("ownerReferences") or ()
    return next((owner["uid"] for owner in owners if owner.get("controller")), None)


def _read_rollout(body: Mapping[str, Any]) -> Rollout:
    metadata, spec, status = body["metadata"], body["spec"], body.get("status") or {}
    template = spec["template"]["metadata"]
    return Rollout(
        generation=metadata.get("generation", 0),
        observed_generation=status.get("observedGeneration", 0),
        desired=spec.get("replicas", 1),
        replicas=status.get("replicas", 0),
        updated=status.get("updatedReplicas", 0),
        config_hash=(template.get("labels") or {}).get(CONFIG_HASH_LABEL, ""),
        template_hash=(metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION, ""),
        pod_template_hash=(template.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION),
        failure=_rollout_failure(status),
    )


def _rollout_failure(status: Mapping[str, Any]) -> str | None:
    failing = find_condition(status, "ReplicaFailure")
    if failing.get("status") == "True":
        return told(failing)
    progressing = find_condition(status, "Progressing")
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return cut(progressing.get("message") or "the pods took longer than their deadline")
    return None
