"""What was observed: slim, frozen views of the objects, and all that one pass decides upon."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.contract.wire import Fault

from graft_operator.decisions.fingerprint import short_hash
from graft_operator.decisions.references import Known
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER, ADAPTER_DEPLOYMENT, CONFIG_MAP, DEPLOYMENT
from graft_operator.objects import read_adapter_set
from graft_operator.resource import AdapterDeploymentStatus, AdapterStatus, AttachedAdapterSpec, AttachedAdapterStatus

MAX_SETS = 16
"""ConfigMaps that are looked at for a set, and sets that the status names."""


@dataclass(frozen=True)
class Failure:
    """Why a pool can't be made as its spec says; a person must look."""

    reason: str
    message: str


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
    failure: Failure | None = None
    """Why its spec is not looked at."""
    refresh: str = ""
    """Its annotation graft.dev/refresh: whenever it changes, all sources are looked at again."""

    def __str__(self) -> str:
        return str(self.pool_key)

    @property
    def pool_key(self) -> PoolKey:
        return PoolKey(self.namespace, self.name)

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(ADAPTER_DEPLOYMENT.name, self.namespace, self.name)


@dataclass(frozen=True)
class AdapterView:
    """An Adapter as stored."""

    namespace: str
    name: str
    uid: str
    generation: int
    created: str
    """When it was made, as `2026-01-31T12:00:00Z`."""
    spec: AttachedAdapterSpec | Failure
    """Or why it can't be read."""
    status: AttachedAdapterStatus
    deleting: bool = False
    resource_version: str = ""

    def __str__(self) -> str:
        return f"{self.namespace}/{self.name} ({ADAPTER.name})"

    @property
    def key(self) -> ObjectKey:
        return ObjectKey(ADAPTER.name, self.namespace, self.name)

    @property
    def served_name(self) -> str:
        """Return its name in requests."""
        return (self.spec.name if isinstance(self.spec, AttachedAdapterSpec) else None) or self.name


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
        """Tell whether all pods are of the current template, and no others are left."""
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
    binary_data: Mapping[str, str] = field(default_factory=dict)
    """Of a ConfigMap."""
    deleting: bool = False
    foreign: bool = False
    """Others have added fields to its spec."""

    @property
    def adapter_set(self) -> AdapterSet | None:
        """Return the adapter set in a ConfigMap, unpacked at each call: `Observed.stored_sets` has it once a pass."""
        return read_adapter_set({"binaryData": self.binary_data})


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
    owner_uid: str | None = None
    """Of what controls it: a ReplicaSet."""
    deleting: bool = False
    ended: bool = False
    """Succeeded or Failed: it will never run again."""
    trouble: str | None = None
    """Why it does not run: unschedulable, an image that can't be pulled, a crash."""
    stuck: bool = False
    """The trouble is in what the pod names, such as its image: waiting ends it only where somebody acts."""
    resource_version: str = ""

    @property
    def counts(self) -> bool:
        """Tell whether this is one of the pods that the Deployment wants."""
        return not self.deleting and not self.ended


@dataclass(frozen=True)
class PodReport:
    """What a pod says of itself. `status` holds all adapters; None: nothing is known of it."""

    status: RuntimeStatus | None = None
    asked: bool = False
    """It was asked at least once since it is followed."""
    unreachable: str | None = None
    fault: Fault | None = None
    """Why its answers can't be read: they are of another version of the contract."""


@dataclass(frozen=True)
class ResolvedSource:
    """What a pod answered about a source: a digest or a fault. Neither: it could not be asked."""

    digest: str | None = None
    revision: str | None = None
    fault: Fault | None = None
    retry_at: float = 0.0
    """Unix seconds from which it may be asked again, where that is of any use."""
    asked_at: float = 0.0
    """Unix seconds at which the question began that was answered last."""


@dataclass(frozen=True)
class Applied:
    """The last apply of an object: what we wanted and what came of it."""

    desired: str
    fingerprint: str


def applied_hash(applied: Mapping[tuple[str, str], Applied]) -> str:
    """Return one hash for all objects of a pool: what was wanted of each, and what came of it."""
    return short_hash(sorted((*key, last.desired, last.fingerprint) for key, last in applied.items()))


@dataclass(frozen=True)
class Observed:
    """All that one pass decides upon."""

    pool: PoolView
    adapters: tuple[AdapterView, ...] = ()
    """The Adapters that name this pool."""
    children: tuple[Child, ...] = ()
    pods: tuple[PodView, ...] = ()
    reports: Mapping[str, PodReport] = field(default_factory=dict)
    """Pod UID → what it says."""
    resolutions: Mapping[Source, ResolvedSource] = field(default_factory=dict)
    refresh_since: float = 0.0
    """Unix seconds at which the pool's annotation for it was seen first: earlier looks at sources don't count."""
    keys: Mapping[str, str] = field(default_factory=dict)
    """The public keys for the control ports: key id → PEM."""
    applied: Mapping[tuple[str, str], Applied] = field(default_factory=dict)
    """Kind and name → the last apply."""
    referred: Known = field(default_factory=dict)
    """The claims and Secrets that the spec names, where the administrator says which ones pools may use."""
    rejected: Mapping[str, str] = field(default_factory=dict)
    """Template hash → why the API server refused that Deployment."""
    failure: Failure | None = None

    def own(self, kind: str, name: str) -> Child | None:
        """Return our object of this kind and name."""
        return next((child for child in self.own_children if (child.kind, child.name) == (kind, name)), None)

    @cached_property
    def adapter_statuses(self) -> tuple[AdapterStatus, ...]:
        """Return what was told last of adapters, of those in the pool's spec last."""
        return (*(view.status for view in self.adapters), *self.pool.status.adapters)

    def status_of(self, owner: ObjectKey, name: str) -> AdapterStatus | None:
        """Return what was told last of the adapter of this name that `owner` asks for."""
        return self._statuses.get((owner, name))

    @cached_property
    def _statuses(self) -> Mapping[tuple[ObjectKey, str], AdapterStatus]:
        inline = {(self.pool.key, status.name): status for status in self.pool.status.adapters}
        return inline | {(view.key, view.status.name): view.status for view in self.adapters}

    @property
    def own_children(self) -> tuple[Child, ...]:
        """Return the children whose controller is this very pool."""
        return tuple(child for child in self.children if child.owner_uid == self.pool.uid)

    @property
    def config_hashes(self) -> set[str]:
        """Return the hashes of the RuntimeConfigs that pods were made with, or say that they run with."""
        labels = {pod.config_hash for pod in self.pods if not pod.ended and pod.config_hash}
        return labels | {status.config_hash for pod in self.pods if (status := self.report(pod)) is not None}

    @cached_property
    def stored_sets(self) -> Mapping[str, AdapterSet]:
        """Return config hash → the adapter set in our ConfigMap; of too many, first those that somebody uses."""
        ours = [child for child in self.own_children if child.kind == CONFIG_MAP.name and child.config_hash]
        if len(ours) > MAX_SETS:
            known = self.config_hashes | {known.config_hash for known in self.pool.status.adapter_sets}
            ours = sorted(ours, key=lambda child: (child.config_hash not in known, child.name))[:MAX_SETS]
        sets = (stored for child in ours if (stored := child.adapter_set) is not None)
        return {stored.config_hash: stored for stored in sets if stored.pool_uid == self.pool.uid}

    @property
    def rollout(self) -> Rollout | None:
        """Return how far our Deployment is; None where there is no Deployment."""
        deployment = self.own(DEPLOYMENT.name, self.pool.name)
        return None if deployment is None else deployment.rollout

    @property
    def newest_pods(self) -> tuple[PodView, ...]:
        """Return the wanted pods of the Deployment's pod template as it is now; all wanted pods where none is of it."""
        wanted = tuple(pod for pod in self.pods if pod.counts)
        if self.rollout is None:
            return wanted
        return tuple(pod for pod in wanted if pod.template_hash == self.rollout.pod_template_hash) or wanted

    def report(self, pod: PodView) -> RuntimeStatus | None:
        """Return what the pod reports, if it is one of this very pool."""
        status = self.reports.get(pod.uid, PodReport()).status
        return status if status is not None and status.pool_uid == self.pool.uid else None
