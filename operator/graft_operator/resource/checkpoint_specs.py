"""The models of `spec.baseModel`, `spec.sources` and `spec.adapters`: which checkpoints, and where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Annotated, Literal

from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.checkpoints import ModelName
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.contract.schemes import CLAIM, DIRECTORY, HUB, LABEL, SCHEMES, MountKind, Scheme, host_of, listed
from graft_runtime.contract.tasks import Task
from pydantic import Field

from graft_operator.resource.rules import Rule, Ruled
from graft_operator.resource.texts import (
    LAST_PART_IS_A_NAME,
    REVISION_NEEDS_A_SCHEME_WITH_REVISIONS,
    WITH_ENDPOINT,
    WITH_REVISIONS,
    Bool,
    DigestText,
    Endpoint,
    Float,
    Int,
    Interval,
    MountPath,
    PoolName,
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

_MODELS = tuple(scheme for scheme in SCHEMES.values() if scheme.models)
_ADAPTERS_ALONE = tuple(scheme for scheme in SCHEMES.values() if not scheme.models)
_REMOTE = tuple(scheme for scheme in SCHEMES.values() if scheme.mount == "remote")
MOUNTED = {CLAIM: ("claimName", "name"), DIRECTORY: ("mountPath", "mountPath")}
"""The field of a source that makes it one of a mounted scheme, and the field that its URIs begin with."""


def _inside_sources(remote: Iterable[Scheme]) -> str:
    places = listed(shape for scheme in MOUNTED for shape in scheme.written)
    return f"{listed(shape for scheme in remote for shape in scheme.written)}, or a directory inside an entry of\
 `sources`: {places}."


class BaseModelSpec(Ruled):
    """The Hugging Face checkpoint that every pod loads once."""

    name: ModelName | None = None
    """Its name in requests, with an owner or not (`google/gemma-3-270m`); by default the last part of `uri`."""
    uri: Uri = Field(
        description=f"Where its checkpoint is: {_inside_sources(scheme for scheme in _REMOTE if scheme.models)}"
    )
    revision: Revision | None = Field(
        default=None,
        description=f"For {starts_of(WITH_REVISIONS)}: a commit, tag or branch; by default main. Prefer a commit: each"
        " pod resolves a branch by itself, so that pods may serve different commits.",
    )
    digest: DigestText | None = None
    """The sha256 of its files, as Graft computes it. If set, it is verified; if not, the status reports it."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """The type of its weights in memory; `auto` is what the checkpoint says."""
    task: Task | None = None
    """What it is loaded for, as PEFT names it (`task_type`); by default what its config.json says (`architectures`)."""

    quantization: Quantization | None = None
    """How the weights of its linear modules are kept on the device: nf4, fp4 and int8 by bitsandbytes, int8_weight_only
    and float8_weight_only by torchao; by default as the checkpoint has them. A change rolls the pods."""

    in_place: Bool = False
    """Read the weights from the claim or directory that `uri` lies in, instead of from a copy in each pod. They are
    verified there each time a pod starts, so it takes `digest`; pods stop serving once a file of them changes. A change
    rolls the pods."""

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
        Rule(
            f"inPlace goes with a uri of {starts_of(MOUNTED)} and with digest: what others may write to is served only"
            " while it is what the digest names",
            f"!has(self.inPlace) || !self.inPlace || (has(self.digest) && ({starts_with('self.uri', MOUNTED)}))",
            lambda base: not base.in_place or (base.digest is not None and has_scheme(base.uri, MOUNTED)),
        ),
    )

    @property
    def served_name(self) -> str:
        """Return the base's name in requests."""
        return self.name or self.uri.rpartition("/")[2]


class SourceSpec(Ruled):
    """A place to read checkpoints from. Public repositories of the Hub need no entry."""

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
    """A Secret of this namespace with the keys `token` and `hosts`, mounted into the pods: where it may go."""
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
        """Return what the URIs of this source start with."""
        if self.uri_prefixes is not None:
            return self.uri_prefixes
        return (DIRECTORY.below(self.mount_path) if self.mount_path else CLAIM.below(self.name),)

    @property
    def hosts(self) -> tuple[str, ...]:
        """Return the hosts that this source's token goes to."""
        return tuple(dict.fromkeys(host_of(prefix, self.endpoint) for prefix in self.uri_prefixes or ()))

    @property
    def kind(self) -> MountKind:
        """Return how a pod reaches this source."""
        if self.claim_name is not None:
            return "claim"
        return "directory" if self.mount_path is not None else "remote"


class CheckSpec(AnswerCheck, Ruled):
    """What a new version of an adapter must answer on a pod before it answers anybody else there; one that doesn't is a
    bad version."""

    rules = (
        Rule(
            "exactly one of prompt and message must be set",
            "has(self.prompt) != has(self.message)",
            lambda check: (check.prompt is None) != (check.message is None),
        ),
        Rule(
            "exactly one of contains and equals must be set",
            "has(self.contains) != has(self.equals)",
            lambda check: (check.contains is None) != (check.equals is None),
        ),
    )


class AdapterSource(Ruled):
    """What every adapter has, wherever it is written down: the place of its files, and how they are served."""

    uri: Uri = Field(description=f"Where its PEFT checkpoint is: {_inside_sources(_REMOTE)}")
    revision: Revision | None = Field(
        default=None,
        description=f"For {starts_of(WITH_REVISIONS)}: a commit, tag or branch; by default main. It is resolved to a"
        " commit, which every pod serves.",
    )
    digest: DigestText | None = None
    """The sha256 of its files, as Graft computes it. If set, it is verified; if not, the status reports it."""
    scale: Float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    """A factor on what the adapter adds to the base."""
    refresh_interval: Interval | None = None
    """How often its source is looked at for other bytes, such as 1h; by default the pool's, or else never."""
    check: CheckSpec | None = None
    """What a new version must answer on a pod before it answers anybody else there; by default nothing."""

    rules = (
        REVISION_NEEDS_A_SCHEME_WITH_REVISIONS,
        Rule(
            "refreshInterval means nothing beside digest, which names the bytes: leave one of them out",
            "!has(self.refreshInterval) || !has(self.digest)",
            lambda adapter: adapter.refresh_interval is None or adapter.digest is None,
        ),
    )


class AdapterSpec(AdapterSource):
    """One adapter that the pool answers for."""

    name: ServedName
    """Its name in requests (`model`)."""
    pinned: Bool = False
    """Mounted from the start and never displaced."""
    share: Int = Field(default=1, ge=1, le=100)
    """How much of a pod that is asked for more than it can do is this adapter's, against the shares of the others."""


class AttachedAdapterSpec(AdapterSource):
    """One adapter that an AdapterDeployment of the same namespace answers for, beside those in its own spec."""

    adapter_deployment_name: PoolName
    """The AdapterDeployment that answers for it; it can't be changed."""
    name: ServedName | None = None
    """Its name in requests (`model`), by default metadata.name; it can't be changed."""
