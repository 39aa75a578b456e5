"""The models of `status`. Strings that others write (messages) are cut to their maximum instead of refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated, Literal

from graft_runtime.contract.checkpoints import MODEL_NAME_MAX
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.alias_generators import to_camel

from graft_operator.resource.rules import list_map

ConditionStatus = Literal["True", "False", "Unknown"]
MAX_HISTORY = 5
"""Earlier versions of an adapter that the status names."""


def _cut(limit: int) -> Callable[[object], object]:
    def cut(value: object) -> object:
        if isinstance(value, str) and len(value) > limit:
            return value[: limit - 1] + "…"
        return value

    return cut


MessageText = Annotated[str, BeforeValidator(_cut(4096)), Field(max_length=4096)]
ReasonText = Annotated[str, Field(max_length=128, pattern=r"^[A-Za-z]([A-Za-z0-9_,:]*[A-Za-z0-9_])?$")]
Count = Annotated[int, Field(ge=0, le=1_000_000)]


class Reported(BaseModel):
    """Base of everything in `status`: camelCase, frozen; unknown fields of another version are ignored."""

    model_config = ConfigDict(
        alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore", use_attribute_docstrings=True
    )


class Condition(Reported):
    """A condition as in the Kubernetes API conventions."""

    type: str = Field(max_length=64)
    """Available, Ready, Reconciling or Stalled."""
    status: ConditionStatus
    """True, False or Unknown."""
    reason: ReasonText
    """Why, as one of the documented words."""
    message: MessageText = ""
    """Why, in a sentence: what is wrong, which field or value, what was expected, what to do."""
    observed_generation: int | None = Field(default=None, ge=0)
    """The generation of the spec that this speaks of."""
    last_transition_time: str | None = Field(default=None, max_length=40, json_schema_extra={"format": "date-time"})
    """When `status` last changed."""


class AdapterSetStatus(Reported):
    """The adapter set that the pods of one RuntimeConfig are to serve."""

    config_hash: str = Field(max_length=64)
    """The hash of the RuntimeConfig that the pods run with."""
    generation: int = Field(ge=0)
    """The generation of the set; it only grows."""
    hash: str = Field(default="", max_length=128)
    """The content hash of the set."""


class AdapterCounts(Reported):
    """How many adapters the pool has, and how many are ready or failed."""

    desired: Count = 0
    """Those of the spec, and the Adapters that are attached; of a merged pool, those in the merge."""
    ready: Count = 0
    """Ready on every desired pod."""
    failed: Count = 0
    """With a fault that needs a person."""


class BaseModelStatus(Reported):
    """The base model as the pods report it."""

    name: str = Field(max_length=MODEL_NAME_MAX)
    """Its name in requests."""
    digest: str | None = Field(default=None, max_length=128)
    """The sha256 of what is served."""
    revision: str | None = Field(default=None, max_length=256)
    """The exact revision of the source, where it has one."""
    runner: str | None = Field(default=None, max_length=64)
    """Which of the runtime's runners computes its requests."""


class MergedAdapterStatus(Reported):
    """One adapter in the weights that are served."""

    name: str = Field(max_length=63)
    """Its entry in `spec.adapters`."""
    weight: float = Field(default=1.0, ge=-1_000_000.0, le=1_000_000.0)
    """Its weight in the sum, multiplied by its scale."""
    digest: str | None = Field(default=None, max_length=128)
    """The sha256 of what was merged."""


class MergeStatus(Reported):
    """The merge as the pods report it."""

    name: str = Field(max_length=63)
    """Its name in requests, the only one."""
    adapters: tuple[MergedAdapterStatus, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("name"))
    """What was merged into the base model."""


class EarlierVersion(Reported):
    """What was served under a name before."""

    digest: str = Field(max_length=128)
    """The sha256 of its files; in the spec it goes back to it, as long as its source or the pods' caches hold it."""
    uri: str | None = Field(default=None, max_length=1024)
    """Its source."""
    revision: str | None = Field(default=None, max_length=256)
    """The exact revision of its source, where it has one; in the spec it goes back to it."""
    until: str = Field(max_length=40, json_schema_extra={"format": "date-time"})
    """When another version was served first."""


class AdapterStatus(Reported):
    """One adapter."""

    name: str = Field(max_length=63)
    """Its name in requests."""
    uri: str | None = Field(default=None, max_length=1024)
    """The source of `digest`; before anything was served, of `wantedDigest`."""
    requested_revision: str | None = Field(default=None, max_length=256)
    """The revision that the spec asks for; `revision` is the exact one."""
    ready_replicas: Count = 0
    """Pods on which it is ready."""
    desired_replicas: Count = 0
    """Pods on which it should be."""
    digest: str | None = Field(default=None, max_length=128)
    """The sha256 of what is served under its name; absent before anything was."""
    wanted_digest: str | None = Field(default=None, max_length=128)
    """The sha256 of what the spec asks for, while that is not what is served."""
    revision: str | None = Field(default=None, max_length=256)
    """The exact revision of the source, where it has one."""
    history: tuple[EarlierVersion, ...] = Field(default=(), max_length=MAX_HISTORY)
    """What was served before, the newest first."""
    method: str | None = Field(default=None, max_length=64)
    """PEFT's type, such as LORA."""
    rank: Count | None = None
    """The highest rank among its modules."""
    remapped: MessageText | None = None
    """What was done to find its modules in the base model; absent when they are where its files say."""
    unused: MessageText | None = None
    """Modules of it that the base model never calls for text, so that they do nothing; absent when there are none."""
    reason: ReasonText | None = None
    """Why it is not ready on every pod, as one of the documented words."""
    message: MessageText | None = None
    """Why, in a sentence."""


class AttachedAdapterStatus(AdapterStatus):
    """What is true of an Adapter."""

    name: str = Field(default="", max_length=63)
    """Its name in requests."""
    observed_generation: int | None = Field(default=None, ge=0)
    """The generation of the spec that this speaks of."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("type"))
    """Available, Ready, Reconciling, Stalled."""


class AdapterDeploymentStatus(Reported):
    """What is true of the pool."""

    observed_generation: int | None = Field(default=None, ge=0)
    """The generation of the spec that the last finished pass has dealt with."""
    conditions: tuple[Condition, ...] = Field(default=(), max_length=16, json_schema_extra=list_map("type"))
    """Available, Ready, Reconciling, Stalled."""
    adapter_sets: tuple[AdapterSetStatus, ...] = Field(
        default=(), max_length=16, json_schema_extra=list_map("configHash")
    )
    """One for each RuntimeConfig that pods still run with, the newest first."""
    replicas: Count = 0
    """Pods that exist."""
    ready_replicas: Count = 0
    """Pods that are Ready."""
    selector: str = Field(default="", max_length=256)
    """The label selector of the pods, for the scale subresource."""
    url: str = Field(default="", max_length=256)
    """Where clients inside the cluster reach the OpenAI-style API."""
    base_model: BaseModelStatus | None = None
    """The base model as served."""
    merge: MergeStatus | None = None
    """What is merged into the base model, in merged mode."""
    adapter_counts: AdapterCounts = AdapterCounts()
    """How many adapters there are, and how many are ready."""
    adapters: tuple[AdapterStatus, ...] = Field(default=(), max_length=256, json_schema_extra=list_map("name"))
    """The inline adapters, in the order of the spec."""
    applied_hash: str = Field(default="", max_length=128)
    """Hash of the pool's objects as last applied. While it matches, a restarted operator applies none of them."""
