"""What was observed: slim, frozen views of the objects, and all that one pass decides upon."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.contract.wire import Fault
from pydantic import ValidationError

from graft_operator.kinds import ADAPTER_DEPLOYMENT, CONFIG_MAP, DEPLOYMENT
from graft_operator.objects import CONFIG_HASH_LABEL, TEMPLATE_HASH_ANNOTATION, read_adapter_set
from graft_operator.resource import AdapterDeploymentStatus

# Written by others on every object or on every roll: no drift.
_FOREIGN_METADATA = frozenset(
    {"managedFields", "resourceVersion", "generation", "creationTimestamp", "selfLink", "deletionTimestamp"}
)
_FOREIGN_ANNOTATIONS = frozenset({"deployment.kubernetes.io/revision"})


@dataclass(frozen=True)
class PoolView:
    """An AdapterDeployment as stored."""

    namespace: str
    name: str
    uid: str
    generation: int
    spec: Mapping[str, Any]
    status: AdapterDeploymentStatus
    deleting: bool = False
    resource_version: str = ""


@dataclass(frozen=True)
class Rollout:
    """How far a Deployment is."""

    generation: int
    observed_generation: int
    desired: int
    replicas: int
    updated: int
    config_hash: str
    template_hash: str
    """Of the Deployment as we wanted it when we applied it last."""
    pod_template_hash: str | None = None
    """Of its pod template as it is now."""
    failure: str | None = None
    """Why its pods can't be made, or that it ran out of time."""

    @property
    def settled(self) -> bool:
        """All pods are of the current template, and no others are left."""
        return (
            self.observed_generation >= self.generation
            and self.updated == self.desired
            and self.replicas == self.desired
        )


@dataclass(frozen=True)
class Child:
    """An object that bears the label of a pool; ours where its controller is the pool."""

    kind: str
    name: str
    uid: str
    resource_version: str
    owner_uid: str | None
    fingerprint: str
    """Of everything but the status and what others write."""
    config_hash: str | None = None
    rollout: Rollout | None = None
    adapter_set: AdapterSet | None = None
    deleting: bool = False


@dataclass(frozen=True)
class PodView:
    """A pod of a pool."""

    name: str
    uid: str
    ip: str | None
    config_hash: str | None
    ready: bool
    template_hash: str | None = None
    """Of the pod template that it was made from."""
    deleting: bool = False
    ended: bool = False
    """Succeeded or Failed: it will never run again."""
    trouble: str | None = None
    """Why it does not run: unschedulable, an image that can't be pulled, a crash."""

    @property
    def counts(self) -> bool:
        """It is one of the pods that the Deployment wants."""
        return not self.deleting and not self.ended


@dataclass(frozen=True)
class PodReport:
    """What a pod says of itself. `status` holds all adapters; None: nothing is known of it."""

    status: RuntimeStatus | None = None
    asked: bool = False
    """It was asked at least once since it is followed."""
    unreachable: str | None = None


@dataclass(frozen=True)
class ResolvedSource:
    """What a pod answered about a source: a digest or a fault. Neither: it could not be asked."""

    digest: str | None = None
    revision: str | None = None
    fault: Fault | None = None
    retry_at: float = 0.0
    """Unix seconds from which it may be asked again, after a fault."""


@dataclass(frozen=True)
class Applied:
    """The last apply of an object: what we wanted and what came of it."""

    desired: str
    fingerprint: str


def applied_hash(applied: Mapping[tuple[str, str], Applied]) -> str:
    """One hash for all objects of a pool: what was wanted of each, and what came of it."""
    return digest_of(sorted((*key, last.desired, last.fingerprint) for key, last in applied.items()))


@dataclass(frozen=True)
class Failure:
    """Why the effects of a plan stopped; a person must look."""

    reason: str
    message: str


@dataclass(frozen=True)
class Observed:
    """All that one pass decides upon."""

    pool: PoolView
    children: tuple[Child, ...] = ()
    pods: tuple[PodView, ...] = ()
    reports: Mapping[str, PodReport] = field(default_factory=dict)
    """Pod UID → what it says."""
    resolutions: Mapping[Source, ResolvedSource] = field(default_factory=dict)
    keys: Mapping[str, str] = field(default_factory=dict)
    """The public keys for the control ports: key id → PEM."""
    applied: Mapping[tuple[str, str], Applied] = field(default_factory=dict)
    """Kind and name → the last apply."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Template hash → why the API server refused that Deployment."""
    failure: Failure | None = None

    def own(self, kind: str, name: str) -> Child | None:
        """Our object of this kind and name."""
        return next((child for child in self.own_children if (child.kind, child.name) == (kind, name)), None)

    @property
    def own_children(self) -> tuple[Child, ...]:
        """The children whose controller is this very pool."""
        return tuple(child for child in self.children if child.owner_uid == self.pool.uid)

    @property
    def newest_pods(self) -> tuple[PodView, ...]:
        """Those that the Deployment has made from its pod template as it is now; all where there is none of these."""
        wanted = tuple(pod for pod in self.pods if pod.counts)
        own = self.own("Deployment", self.pool.name)
        if own is None or own.rollout is None:
            return wanted
        newest = tuple(pod for pod in wanted if pod.template_hash == own.rollout.pod_template_hash)
        return newest or wanted

    def report(self, pod: PodView) -> RuntimeStatus | None:
        """What the pod says, where it is one of this very pool."""
        status = self.reports.get(pod.uid, PodReport()).status
        return status if status is not None and status.pool_uid == self.pool.uid else None


def fingerprint(body: Mapping[str, Any]) -> str:
    """A hash of what is wanted of an object, defaults included."""
    metadata = {key: value for key, value in body["metadata"].items() if key not in _FOREIGN_METADATA}
    annotations = metadata.get("annotations") or {}
    metadata["annotations"] = {key: annotations[key] for key in annotations if key not in _FOREIGN_ANNOTATIONS}
    wanted = {key: value for key, value in body.items() if key not in ("status", "metadata", "apiVersion", "kind")}
    return digest_of({**wanted, "metadata": metadata})


def digest_of(value: object) -> str:
    """The first 16 hex digits of the sha256 of the JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def read_pool(body: Mapping[str, Any]) -> PoolView:
    """A view of an AdapterDeployment."""
    metadata = body["metadata"]
    try:
        status = AdapterDeploymentStatus.model_validate(body.get("status") or {})
    except ValidationError:  # another version wrote it; the next pass writes it anew
        status = AdapterDeploymentStatus()
    return PoolView(
        namespace=metadata["namespace"],
        name=metadata["name"],
        uid=metadata["uid"],
        generation=metadata.get("generation", 0),
        spec=body.get("spec") or {},
        status=status,
        deleting="deletionTimestamp" in metadata,
        resource_version=metadata.get("resourceVersion", ""),
    )


def read_child(kind: str, body: Mapping[str, Any]) -> Child:
    """A view of a Deployment, ConfigMap, Service, PodDisruptionBudget or NetworkPolicy."""
    metadata = body["metadata"]
    return Child(
        kind=kind,
        name=metadata["name"],
        uid=metadata["uid"],
        resource_version=metadata["resourceVersion"],
        owner_uid=_controller_uid(metadata),
        fingerprint=fingerprint(body),
        config_hash=(metadata.get("labels") or {}).get(CONFIG_HASH_LABEL),
        rollout=_read_rollout(body) if kind == DEPLOYMENT.name else None,
        adapter_set=read_adapter_set(body) if kind == CONFIG_MAP.name else None,
        deleting="deletionTimestamp" in metadata,
    )


def read_pod(body: Mapping[str, Any]) -> PodView:
    """A view of a pod."""
    metadata, status = body["metadata"], body.get("status") or {}
    return PodView(
        name=metadata["name"],
        uid=metadata["uid"],
        ip=status.get("podIP") or None,
        config_hash=(metadata.get("labels") or {}).get(CONFIG_HASH_LABEL),
        ready=_condition(status, "Ready").get("status") == "True",
        template_hash=(metadata.get("annotations") or {}).get(TEMPLATE_HASH_ANNOTATION),
        deleting="deletionTimestamp" in metadata,
        ended=status.get("phase") in ("Succeeded", "Failed"),
        trouble=_pod_trouble(status),
    )


def _controller_uid(metadata: Mapping[str, Any]) -> str | None:
    controllers = (owner for owner in metadata.get("ownerReferences") or () if owner.get("controller"))
    return next((owner["uid"] for owner in controllers if owner.get("kind") == ADAPTER_DEPLOYMENT.name), None)


def _condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    return next((condition for condition in status.get("conditions") or () if condition.get("type") == kind), {})


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
    failing = _condition(status, "ReplicaFailure")
    if failing.get("status") == "True":
        return f"{failing.get('reason')}: {failing.get('message')}"
    progressing = _condition(status, "Progressing")
    if progressing.get("reason") == "ProgressDeadlineExceeded":
        return str(progressing.get("message") or "the pods took longer than their deadline")
    return None


def _pod_trouble(status: Mapping[str, Any]) -> str | None:
    scheduled = _condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return f"{scheduled.get('reason')}: {scheduled.get('message')}"
    containers = [*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())]
    for container in containers:
        waiting = (container.get("state") or {}).get("waiting")
        if waiting and waiting.get("reason") not in ("ContainerCreating", "PodInitializing"):
            return ": ".join(part for part in (waiting.get("reason"), waiting.get("message")) if part)
    if status.get("phase") == "Failed":
        return ": ".join(part for part in (status.get("reason"), status.get("message")) if part) or "Failed"
    return None
