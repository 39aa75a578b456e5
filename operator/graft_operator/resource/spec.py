"""The model of `spec`: what a user may write. Everything has a maximum; every field has code behind it."""

from __future__ import annotations

from typing import Annotated, ClassVar

from graft_runtime.contract.config import MAX_ORIGINS, Origin
from graft_runtime.contract.schemes import CLAIM, DIRECTORY, deepest_prefix
from pydantic import AfterValidator, Field

from graft_operator.resource.checkpoint_specs import MOUNTED, AdapterSpec, BaseModelSpec, SourceSpec
from graft_operator.resource.pod_specs import (
    AcceleratorSpec,
    ApiKeysSpec,
    CacheSpec,
    EngineSpec,
    PodTemplateSpec,
    StrategySpec,
)
from graft_operator.resource.rules import Rule, Ruled, list_map, unique
from graft_operator.resource.texts import Bool, Float, Int, Interval, ServedName, has_scheme, starts_with

MAX_ADAPTERS = 256
MAX_ATTACHED = 2000
"""Adapters that are attached to one pool."""
MAX_MERGED = 16


class MergePartSpec(Ruled):
    """One adapter of a merge."""

    name: ServedName
    """An entry of `adapters`."""
    weight: Float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    """The weight of the adapter in the sum; it is multiplied by the adapter's `scale`."""

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
    """The only name that the pool serves; every other name is 404, also the base model's."""
    adapters: Annotated[tuple[MergePartSpec, ...], AfterValidator(unique)] = Field(
        min_length=1, max_length=MAX_MERGED, json_schema_extra=list_map("name")
    )
    """The entries of `adapters` to merge, each with its weight."""


class AdapterDeploymentSpec(Ruled):
    """A pool: one base model, its pods, and the adapters they answer for."""

    replicas: Int = Field(default=1, ge=0, le=1000)
    """How many pods; each holds the whole base model."""
    base_model: BaseModelSpec
    """The checkpoint that every pod loads once."""
    sources: Annotated[tuple[SourceSpec, ...], AfterValidator(unique)] = Field(
        default=(), max_length=32, json_schema_extra=list_map("name")
    )
    """Where checkpoints may come from; a change rolls the pods."""
    adapters: Annotated[tuple[AdapterSpec, ...], AfterValidator(unique)] = Field(
        default=(), max_length=MAX_ADAPTERS, json_schema_extra=list_map("name")
    )
    """The adapters. A change needs no new pods, except for adapters in `merge`."""
    refresh_interval: Interval | None = None
    """How often sources of adapters without a digest are looked at for other bytes, such as 1h; by default never."""
    merge: MergeSpec | None = None
    """Serves these adapters merged into the base, instead of each by its name; a change rolls the pods."""
    composition: Bool = False
    """Lets requests ask for a weighted sum of adapters, `adapters` beside `model`; a change rolls the pods."""
    allowed_origins: tuple[Origin, ...] = Field(default=(), max_length=MAX_ORIGINS)
    """Origins whose pages may ask the pods from a browser, `https://chat.example.com`, or `*`; a change rolls the pods.
    """
    api_keys: ApiKeysSpec | None = None
    """Whom the pods answer, by default whoever reaches them; a change rolls the pods, one of the keys does not."""
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
    """How long a pod that is being deleted may finish running requests; the last 10 seconds are for its shutdown."""
    suspend: Bool = False
    """While it is true, Graft changes nothing for this pool but its status."""
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
            f"!({starts_with('self.baseModel.uri', MOUNTED)}) || has(self.sources) && self.sources.exists(source, "
            + " || ".join(
                f"has(source.{given}) && (self.baseModel.uri + '/').startsWith('{scheme.start}' + source.{place} + '/')"
                for scheme, (given, place) in MOUNTED.items()
            )
            + ")",
            lambda spec: (
                not has_scheme(spec.base_model.uri, MOUNTED)
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
            "a merge goes into full weights: leave baseModel.quantization out, or write the merge with graft-runtime"
            " merge and serve that checkpoint",
            "!has(self.merge) || !has(self.baseModel.quantization)",
            lambda spec: spec.merge is None or spec.base_model.quantization is None,
        ),
        Rule(
            "composition means nothing beside merge, whose pool serves one name: leave one of them out",
            "!has(self.merge) || !has(self.composition) || !self.composition",
            lambda spec: spec.merge is None or not spec.composition,
        ),
        Rule(
            "refreshInterval means nothing beside merge, which is made when a pod starts: leave one of them out",
            "!has(self.merge) || !has(self.refreshInterval)"
            " && (!has(self.adapters) || !self.adapters.exists(adapter, has(adapter.refreshInterval)))",
            lambda spec: spec.merge is None or not any(each.refresh_interval for each in (spec, *spec.adapters)),
        ),
        Rule(
            "check means nothing beside merge, whose pool serves no adapter by itself: leave one of them out",
            "!has(self.merge) || !has(self.adapters) || !self.adapters.exists(adapter, has(adapter.check))",
            lambda spec: spec.merge is None or all(adapter.check is None for adapter in spec.adapters),
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
        """Return the adapters in the merge; none in hot mode."""
        return frozenset(part.name for part in self.merge.adapters) if self.merge is not None else frozenset()
