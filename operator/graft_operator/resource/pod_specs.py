"""The models of the fields of `spec` that say how pods are made: engine, device, cache, replacement, overlay."""

from __future__ import annotations

from typing import Annotated, Any

from graft_runtime.contract.config import EngineConfig
from pydantic import Field

from graft_operator.quantities import QUANTITY_PATTERN
from graft_operator.resource.rules import Rule, Ruled
from graft_operator.resource.texts import Annotations, Int, Labels, ResourceName

Quantity = Annotated[str, Field(pattern=QUANTITY_PATTERN, max_length=20)]


class EngineSpec(EngineConfig, Ruled):
    """Limits of a pod's engine."""


class AcceleratorSpec(Ruled):
    """The device that a pod asks for."""

    resource_name: (
        Annotated[
            str,
            Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317),
        ]
        | None
    ) = None
    """The extended resource of its device plugin; by default the administrator's choice, nvidia.com/gpu at first."""
    count: Int = Field(default=1, ge=0, le=1)
    """1: one device a pod; 0: none, the model runs on the CPU."""


class ApiKeysSpec(Ruled):
    """The keys of a pool's clients."""

    secret_name: ResourceName
    """A Secret of this namespace. Each of its entries is a key, as JSON: its sha256, models, requestsPerMinute."""


class CacheSpec(Ruled):
    """The pods' copies of the checkpoints: an emptyDir each, or a claim that they share."""

    claim_name: ResourceName | None = None
    """A PersistentVolumeClaim of this namespace, ReadWriteMany unless all pods are on one node, that keeps them for all
    pods of this pool and of others that name it; a change rolls the pods."""
    size: Quantity | None = None
    """The most that it may hold, such as 20Gi; by default the administrator's choice, 100Gi at first; of a claim, all
    that it has room for."""
    adapter_size: Quantity | None = None
    """The most that the files of one adapter may have; by default the administrator's choice, 4Gi at first."""


class StrategySpec(Ruled):
    """How pods are replaced when a change needs new pods."""

    max_surge: Int = Field(default=1, ge=0, le=1000)
    """How many pods more than `replicas` there may be during a roll; each needs a spare device."""
    max_unavailable: Int = Field(default=0, ge=0, le=1000)
    """How many pods fewer than `replicas` may serve during a roll."""

    rules = (
        Rule(
            "maxSurge and maxUnavailable must not both be 0, for no pod could ever be replaced:"
            " set maxUnavailable: 1 where there is no spare device",
            "self.maxSurge > 0 || self.maxUnavailable > 0",
            lambda strategy: strategy.max_surge > 0 or strategy.max_unavailable > 0,
        ),
    )


class PodTemplateMetadata(Ruled):
    """Labels and annotations that the pods get besides Graft's own."""

    labels: Labels = Field(default_factory=dict)
    """Labels, besides Graft's own."""
    annotations: Annotations = Field(default_factory=dict)
    """Annotations."""


class PodTemplateSpec(Ruled):
    """An overlay on the pods that Graft makes; the container is `runtime`."""

    metadata: PodTemplateMetadata = PodTemplateMetadata()
    """Labels and annotations of the pods."""
    spec: dict[str, Any] = Field(
        default={}, max_length=64, json_schema_extra={"x-kubernetes-preserve-unknown-fields": True}
    )
    """A partial pod spec: maps merge, lists with a key (containers, env, volumes, …) merge by it, others replace."""
