"""RuntimeConfig: what a pod is born with; a change of it rolls the pods."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import ConfigDict, Field

from graft_runtime.contract.checkpoints import AdapterName, Digest, ModelName, Source
from graft_runtime.contract.quantizations import Quantization
from graft_runtime.contract.schemes import CLAIM, MountKind
from graft_runtime.contract.tasks import Task
from graft_runtime.contract.wire import Message, Wire

# File names inside the directories that the operator mounts into a pod.
RUNTIME_CONFIG_FILE = "runtime-config.json"
SOURCE_TOKEN_FILE = "token"  # noqa: S105 - in the directory of a source's Secret
SOURCE_HOSTS_FILE = "hosts"
"""Beside it: the hosts that the token is for."""


def hosts_of(text: str) -> tuple[str, ...]:
    """Return the hosts in a SOURCE_HOSTS_FILE, apart by white space or commas, with their ports where URLs have one."""
    return tuple(host.lower() for host in re.split(r"[\s,]+", text) if host)


MAX_ORIGINS = 16
Origin = Annotated[str, Field(pattern=r"^(\*|https?://[A-Za-z0-9.:\[\]-]+)$", max_length=255)]


class SourceMount(Wire):
    """A declared source (`spec.sources`) and its URIs. Its directory reaches the runtime as an argument."""

    name: str = Field(max_length=63)
    kind: MountKind
    """`claim`: all URIs of its name; `directory`: those below `uri_prefixes`; `remote`: likewise, and its directory is
    that of its Secret, where it has one."""
    uri_prefixes: tuple[str, ...] = Field(default=(), max_length=16)
    """Empty for a claim."""
    endpoint: str | None = Field(default=None, max_length=512)
    """Where a scheme has an endpoint: another server than the table's."""

    @property
    def prefixes(self) -> tuple[str, ...]:
        """Return what the URIs of the source start with."""
        return (CLAIM.below(self.name),) if self.kind == "claim" else self.uri_prefixes


class BaseModelConfig(Wire):
    """The base model of a pool."""

    name: ModelName
    source: Source
    digest: Digest | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    task: Task | None = None
    """None: what the checkpoint's own config.json says."""
    quantization: Quantization | None = None
    """Of the weights of its linear modules; None: as the checkpoint has them."""
    in_place: bool = False
    """Read the weights where they lie in a mounted source, and verify `digest`, which it takes, there."""


class EngineConfig(Wire):
    """Limits of the engine; they reach it whole, in `Start`. A new one is declared here: `spec.engine` has the same."""

    model_config = ConfigDict(use_attribute_docstrings=True, strict=True)

    max_sequences: int = Field(default=16, ge=1, le=1024)
    """Sequences in one batch."""
    max_sequence_length: int = Field(default=4096, ge=16, le=1_048_576)
    """Tokens of prompt and answer together; the model's own limit holds as well."""
    max_mounted_adapters: int = Field(default=32, ge=1, le=4096)
    """Adapters whose weights are in the memory of the model's device at once; others wait on the pod's disk."""
    max_rank: int = Field(default=64, ge=1, le=1024)
    """The highest rank that a module of an adapter may have."""
    prefix_cache: bool = True
    """Keep keys and values of prompts and answers for requests to the same adapters that begin with the same tokens."""
    compile: bool = True
    """On a CPU: compile what takes a step's time when the pod starts, for its processor; that needs a C++ compiler."""


class MergePart(Wire):
    """One adapter of a merge."""

    name: AdapterName
    source: Source
    digest: Digest | None = None
    """In a RuntimeConfig: as the spec declares it, so that changing it rolls the pods; None: the adapter set names it.
    In a report: what is merged."""
    weight: float = Field(default=1.0, ge=-1_000_000.0, le=1_000_000.0, allow_inf_nan=False)
    """How much of it, the adapter's scale included: W' = W + weight · B·A."""


class Merge(Wire):
    """The sum of what adapters add, folded into the base's weights, served under one name: wanted, or as reported."""

    name: AdapterName
    adapters: tuple[MergePart, ...] = Field(min_length=1, max_length=16)
    """In the order of the sum, and each once."""


class RuntimeConfig(Message):
    """What a pod is born with. A change rolls the pods."""

    pool_uid: str = Field(max_length=64)
    base_model: BaseModelConfig
    engine: EngineConfig = EngineConfig()
    sources: tuple[SourceMount, ...] = Field(default=(), max_length=32)
    adapter_startup_seconds: int = Field(default=300, ge=0, le=86_400)
    """How long readiness waits for adapters that are neither ready nor failed."""
    drain_seconds: int = Field(default=110, ge=0, le=86_400)
    """How long running requests may go on after SIGTERM."""
    cache_bytes: int | None = Field(default=None, ge=1)
    """The most that the cache may hold; None: as the administrator says."""
    adapter_bytes: int | None = Field(default=None, ge=1)
    """The most that the files of one adapter may have; None: as the administrator says."""
    merge: Merge | None = None
    """None: hot mode."""
    composition: bool = False
    """Requests may name several adapters, with weights."""
    allowed_origins: tuple[Origin, ...] = Field(default=(), max_length=MAX_ORIGINS)
    """Whose pages may ask from a browser, and read the answers."""

    @property
    def served_name(self) -> str:
        """Return what requests call the model itself: the merge, or else the base."""
        return (self.merge or self.base_model).name

    def config_hash(self) -> str:
        """Return the first ten hex digits of the content hash: part of the names of a pool's ConfigMaps."""
        return self.content_hash().removeprefix("sha256:")[:10]
