"""The models of `spec`: what a user may write. Everything has a maximum; every field has code behind it.

One long module of declarations: it is read as the manifest is, from top to bottom.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Any, ClassVar, Literal

from graft_runtime.contract.schemes import (
    CLAIM,
    DIRECTORY,
    HUB,
    LABEL,
    SCHEMES,
    MountKind,
    Scheme,
    deepest_prefix,
    listed,
)
from graft_runtime.contract.tasks import Task
from pydantic import AfterValidator, Field

from graft_operator.resource.rules import Rule, Ruled, list_map, unique
from graft_operator.resource.texts import (
    LAST_PART_IS_A_NAME,
    REVISION_NEEDS_A_SCHEME_WITH_REVISIONS,
    WITH_ENDPOINT,
    WITH_REVISIONS,
    Annotations,
    Bool,
    DigestText,
    Endpoint,
    Float,
    Int,
    Labels,
    MountPath,
    ResourceName,
    Revision,
    ServedName,
    Uri,
    UriPrefix,
    cel,
    has_scheme,
    matches,
    starts_of,
    starts_with,
)

MAX_ADAPTERS = 256
MAX_MERGED = 16
QUANTITY_UNITS = {"": 1, "k": 10**3, "M": 10**6, "G": 10**9, "T": 10**12}
QUANTITY_UNITS |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}


_MODELS = tuple(scheme for scheme in SCHEMES.values() if scheme.models)
_ADAPTERS_ALONE = tuple(scheme for scheme in SCHEMES.values() if not scheme.models)
_REMOTE = tuple(scheme for scheme in SCHEMES.values() if scheme.mount == "remote")
_MOUNTED = {CLAIM: ("claimName", "name"), DIRECTORY: ("mountPath", "mountPath")}
"""The field of a source that makes it one of a mounted scheme, and the field that its URIs begin with."""


def _inside_sources(remote: Iterable[Scheme]) -> str:
    places = listed(shape for scheme in _MOUNTED for shape in scheme.written)
    return f"{listed(shape for scheme in remote for shape in scheme.written)}, or a directory inside an entry of\
 `sources`: {places}."


class BaseModelSpec(Ruled):
    """The Hugging Face checkpoint that every pod loads once."""

    name: ServedName | None = None
    """Its name in requests; by default the last part of `uri`."""
    uri: Uri = Field(
        description=f"Where its checkpoint is: {_inside_sources(scheme for scheme in _REMOTE if scheme.models)}"
    )
    revision: Revision | None = Field(
        default=None,
        description=f"Of {starts_of(WITH_REVISIONS)}: a commit, tag or branch; by default main. Name a commit: each pod"
        " looks a branch up for itself.",
    )
    digest: DigestText | None = None
    """Its sha256 as Graft computes it; verified where given, reported in the status where not."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of its weights in memory; `auto` is what the checkpoint says."""
    task: Task | None = None
    """What it is loaded for, as PEFT names it (`task_type`); by default what its config.json says (`architectures`)."""

    rules = (
        Rule(
            "name must be set where the last part of uri can't serve as one"
            " (letters, digits, . _ and -, at most 63, ends alphanumeric)",
            f"has(self.name) || self.uri.matches({cel(LAST_PART_IS_A_NAME)})",
            lambda base: base.name is not None or matches(LAST_PART_IS_A_NAME, base.uri),
        ),
        REVISION_NEEDS_A_SCHEME_WITH_REVISIONS,
        Rule(
            f"uri must not be {starts_of(_ADAPTERS_ALONE)}: archives are for adapters;"
            f" use {starts_of(scheme for scheme in _MODELS if scheme.allowed)}",
            f"!({starts_with('self.uri', _ADAPTERS_ALONE)})",
            lambda base: not has_scheme(base.uri, _ADAPTERS_ALONE),
        ),
    )

    @property
    def served_name(self) -> str:
        """The base's name in requests."""
        return self.name or self.uri.rpartition("/")[2]


class SourceSpec(Ruled):
    """A place that checkpoints are read from. What is public on the Hub needs no entry."""

    name: Annotated[str, Field(pattern=rf"^{LABEL}$", min_length=1, max_length=50)] = Field(
        description=f"Its name, the first part of {CLAIM.start}NAME/PATH."
    )
    claim_name: ResourceName | None = None
    """A PersistentVolumeClaim of this namespace, mounted read-only."""
    mount_path: MountPath | None = Field(
        default=None,
        description="A directory that `podTemplate` mounts into the container `runtime`;"
        f" {DIRECTORY.start} URIs below it are allowed.",
    )
    uri_prefixes: Annotated[tuple[UriPrefix, ...], Field(max_length=16)] | None = Field(
        default=None,
        description=f"{listed(scheme.start + scheme.prefix for scheme in _REMOTE)}: URIs below them are read with the"
        " token of `secretName` and from `endpoint`.",
    )
    secret_name: ResourceName | None = None
    """A Secret of this namespace with the key `token`, mounted into the pods; it goes to this source's host alone."""
    endpoint: Endpoint | None = Field(
        default=None,
        description=f"For {HUB.start}: another server that speaks the Hub's API, by default {HUB.endpoint}.",
    )

    rules = (
        Rule(
            "exactly one of claimName, mountPath and uriPrefixes must be set",
            "[has(self.claimName), has(self.mountPath), has(self.uriPrefixes) && self.uriPrefixes.size() > 0]"
            ".filter(given, given).size() == 1",
            lambda source: (
                [bool(given) for given in (source.claim_name, source.mount_path, source.uri_prefixes)].count(True) == 1
            ),
        ),
        Rule(
            "uriPrefixes goes with secretName, endpoint or both, and they with it",
            "has(self.uriPrefixes) == (has(self.secretName) || has(self.endpoint))",
            lambda source: (source.uri_prefixes is None) == (source.secret_name is None and source.endpoint is None),
        ),
        Rule(
            f"endpoint is for prefixes of {starts_of(WITH_ENDPOINT)} only",
            "!has(self.endpoint) || !has(self.uriPrefixes)"
            f" || self.uriPrefixes.all(prefix, {starts_with('prefix', WITH_ENDPOINT)})",
            lambda source: (
                source.endpoint is None
                or all(has_scheme(prefix, WITH_ENDPOINT) for prefix in source.uri_prefixes or ())
            ),
        ),
    )

    @property
    def prefixes(self) -> tuple[str, ...]:
        """What the URIs of this source start with."""
        if self.uri_prefixes is not None:
            return self.uri_prefixes
        return (DIRECTORY.below(self.mount_path) if self.mount_path else CLAIM.below(self.name),)

    @property
    def kind(self) -> MountKind:
        """How a pod reaches it."""
        if self.claim_name is not None:
            return "claim"
        return "directory" if self.mount_path is not None else "remote"


class AdapterSpec(Ruled):
    """One adapter that the pool answers for."""

    name: ServedName
    """Its name in requests (`model`)."""
    uri: Uri = Field(description=f"Where its PEFT checkpoint is: {_inside_sources(_REMOTE)}")
    revision: Revision | None = Field(
        default=None,
        description=f"Of {starts_of(WITH_REVISIONS)}: a commit, tag or branch, by default main. It is resolved once,"
        " and every pod serves that commit.",
    )
    digest: DigestText | None = None
    """Its sha256 as Graft computes it; verified where given, reported in the status where not."""
    scale: Float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    """A factor on what the adapter adds to the base."""
    pinned: Bool = False
    """Mounted from the start and never displaced."""

    rules = (REVISION_NEEDS_A_SCHEME_WITH_REVISIONS,)


class MergePartSpec(Ruled):
    """One adapter of a merge."""

    name: ServedName
    """An entry of `adapters`."""
    weight: Float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    """How much of it; its `scale` counts besides."""

    rules = (
        Rule(
            "weight must not be 0: leave the adapter out of the merge",
            "!has(self.weight) || self.weight != 0.0",
            lambda part: part.weight != 0,
        ),
    )


class MergeSpec(Ruled):
    """Merged mode: adapters folded into the base's weights when a pod starts, W' = W + Σ weight · scale · B·A."""

    name: ServedName
    """The one name that the pool serves; every other is 404, the base model's as well."""
    adapters: Annotated[tuple[MergePartSpec, ...], AfterValidator(unique)] = Field(
        min_length=1, max_length=MAX_MERGED, json_schema_extra=list_map("name")
    )
    """Which of `adapters`, and how much of each."""
    method: Literal["linear"] = "linear"
    """`linear`: the weighted sum of what the adapters add."""


class EngineSpec(Ruled):
    """Limits of a pod's engine."""

    max_sequences: Int = Field(default=16, ge=1, le=1024)
    """Sequences in one batch."""
    max_sequence_length: Int = Field(default=4096, ge=16, le=1_048_576)
    """Tokens of prompt and answer together; the model's own limit holds as well."""
    max_mounted_adapters: Int = Field(default=32, ge=1, le=4096)
    """Adapters whose weights are in the memory of the model's device at once; others wait on the pod's disk."""
    max_rank: Int = Field(default=64, ge=1, le=1024)
    """The highest rank that a module of an adapter may have."""


class AcceleratorSpec(Ruled):
    """The device that a pod asks for."""

    resource_name: Annotated[
        str, Field(pattern=r"^[a-z0-9]([-a-z0-9.]*[a-z0-9])?/[A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?$", max_length=317)
    ] = "nvidia.com/gpu"
    """The extended resource of its device plugin."""
    count: Int = Field(default=1, ge=0, le=1)
    """1: one device a pod; 0: none, the model runs on the CPU."""


class CacheSpec(Ruled):
    """The pod's copy of the checkpoints: an emptyDir."""

    size: Annotated[str, Field(pattern=r"^[1-9][0-9]{0,15}(k|M|G|T|Ki|Mi|Gi|Ti)?$", max_length=20)] | None = None
    """The most that it may hold, such as 20Gi; by default what the node's disk holds."""

    @property
    def size_bytes(self) -> int | None:
        """`size` in bytes."""
        if self.size is None:
            return None
        digits = self.size.rstrip("kKMGTi")
        return int(digits) * QUANTITY_UNITS[self.size[len(digits) :]]


class StrategySpec(Ruled):
    """How pods are replaced when what they are born with changes."""

    max_surge: Int = Field(default=1, ge=0, le=1000)
    """Pods above `replicas` during a roll; each needs a spare device."""
    max_unavailable: Int = Field(default=0, ge=0, le=1000)
    """Pods below `replicas` during a roll."""

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


class AdapterDeploymentSpec(Ruled):
    """A pool: one base model, its pods, and the adapters they answer for."""

    replicas: Int = Field(default=1, ge=0, le=1000)
    """Pods, each with the whole base model."""
    base_model: BaseModelSpec
    """The checkpoint that every pod loads once."""
    sources: Annotated[tuple[SourceSpec, ...], AfterValidator(unique)] = Field(
        default=(), max_length=32, json_schema_extra=list_map("name")
    )
    """Where checkpoints may come from; a change rolls the pods."""
    adapters: Annotated[tuple[AdapterSpec, ...], AfterValidator(unique)] = Field(
        default=(), max_length=MAX_ADAPTERS, json_schema_extra=list_map("name")
    )
    """The adapters; a change touches no pod, but for those in `merge`."""
    merge: MergeSpec | None = None
    """Serves these adapters merged into the base, instead of each by its name; a change rolls the pods."""
    engine: EngineSpec = EngineSpec()
    """Limits of a pod's engine; a change rolls the pods."""
    accelerator: AcceleratorSpec = AcceleratorSpec()
    """The device that a pod asks for."""
    cache: CacheSpec = CacheSpec()
    """The pod's copy of the checkpoints."""
    strategy: StrategySpec = StrategySpec()
    """How pods are replaced."""
    startup_timeout_seconds: Int = Field(default=1800, ge=10, le=86_400)
    """How long a pod may take to load the base model before it is restarted."""
    adapter_startup_seconds: Int = Field(default=300, ge=0, le=86_400)
    """How long a new pod's readiness waits for adapters that are neither ready nor failed."""
    termination_grace_period_seconds: Int = Field(default=120, ge=15, le=86_400)
    """How long a pod that is going away may go on with running requests; the last 10 seconds are for its end."""
    suspend: Bool = False
    """Stops all that Graft does for this pool, but for its status."""
    pod_template: PodTemplateSpec = PodTemplateSpec()
    """An overlay on the pods; checked by a dry run before use."""

    rules: ClassVar[tuple[Rule, ...]] = (
        Rule(
            "adapters must not bear the name of the base model, which is baseModel.name or else the last part of"
            " baseModel.uri: rename the adapter or set baseModel.name",
            "!has(self.adapters) || !self.adapters.exists(adapter, has(self.baseModel.name)"
            " ? adapter.name == self.baseModel.name : self.baseModel.uri.endsWith('/' + adapter.name))",
            lambda spec: all(adapter.name != spec.base_model.served_name for adapter in spec.adapters),
        ),
        Rule(
            "baseModel.uri must lie in an entry of sources: add {name: SOURCE, claimName: CLAIM} for"
            f" {CLAIM.start}SOURCE/PATH, {{name: NAME, mountPath: /DIRECTORY}} for {DIRECTORY.start}/DIRECTORY/PATH",
            f"!({starts_with('self.baseModel.uri', _MOUNTED)}) || has(self.sources) && self.sources.exists(source, "
            + " || ".join(
                f"has(source.{given}) && (self.baseModel.uri + '/').startsWith('{scheme.start}' + source.{place} + '/')"
                for scheme, (given, place) in _MOUNTED.items()
            )
            + ")",
            lambda spec: (
                not has_scheme(spec.base_model.uri, _MOUNTED)
                or any(deepest_prefix(source.prefixes, spec.base_model.uri) for source in spec.sources)
            ),
        ),
        Rule(
            "more adapters are pinned than engine.maxMountedAdapters holds: raise it or pin fewer",
            "!has(self.adapters)"
            " || self.adapters.filter(adapter, has(adapter.pinned) && adapter.pinned).size()"
            " <= self.engine.maxMountedAdapters",
            lambda spec: sum(adapter.pinned for adapter in spec.adapters) <= spec.engine.max_mounted_adapters,
        ),
        Rule(
            "merge.adapters must name entries of adapters: add the adapter there, or correct the name",
            "!has(self.merge) || self.merge.adapters.all(part,"
            " has(self.adapters) && self.adapters.exists(adapter, adapter.name == part.name))",
            lambda spec: spec.merge is None or spec.merged_names <= {adapter.name for adapter in spec.adapters},
        ),
        Rule(
            "merge.name must not be the name of the base model, which is baseModel.name or else the last part of"
            " baseModel.uri: a merge is another model",
            "!has(self.merge) || (has(self.baseModel.name)"
            " ? self.merge.name != self.baseModel.name : !self.baseModel.uri.endsWith('/' + self.merge.name))",
            lambda spec: spec.merge is None or spec.merge.name != spec.base_model.served_name,
        ),
        Rule(
            "merge.name must not be the name of an adapter outside the merge: add that adapter to merge.adapters, or"
            " choose another name",
            "!has(self.merge) || !has(self.adapters)"
            " || !self.adapters.exists(adapter, adapter.name == self.merge.name)"
            " || self.merge.adapters.exists(part, part.name == self.merge.name)",
            lambda spec: (
                spec.merge is None
                or spec.merge.name not in {adapter.name for adapter in spec.adapters} - spec.merged_names
            ),
        ),
    )

    @property
    def merged_names(self) -> frozenset[str]:
        """The adapters in the merge; none in hot mode."""
        return frozenset(part.name for part in self.merge.adapters) if self.merge is not None else frozenset()
