"""The contract between the operator and the runtime, owned by the runtime. Pydantic only.

    RuntimeConfig   what a pod is born with; a change of it rolls the pods
    AdapterSet      the catalogue of adapters that a pod answers for; hot: a change touches no pod
    RuntimeStatus   what is true in the pod, read back by long poll

Neither RuntimeConfig nor AdapterSet holds a file-system path: mount roots reach the runtime as whole arguments.
Field names are camelCase on the wire (the Kubernetes convention), snake_case in Python.

The control port (not in the Service; bearer token: a JWT signed with Ed25519, audience = the pod's UID):

    PUT  /adapter-set                       AdapterSet → 200 Accepted; 409 for an older one
    GET  /status?boot=&since=&wait=25       → 200 RuntimeStatus with the changed entries only, 204 when nothing changed
    POST /resolve                           ResolveRequest → 200 Resolution
    POST /inspect                           InspectRequest → 200 AdapterInspection: a dry run, nothing is mounted
"""

from __future__ import annotations

import gzip
import hashlib
import json
from enum import StrEnum
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field
from pydantic.alias_generators import to_camel

from graft_runtime.errors import ErrorCode, GraftError

CONTRACT_VERSION = 1
API_PORT = 8000
CONTROL_PORT = 8001
TOKEN_ALGORITHM = "EdDSA"  # noqa: S105
TOKEN_ISSUER = "graft-operator"  # noqa: S105

# File names inside the directories that the operator mounts into a pod.
RUNTIME_CONFIG_FILE = "runtime-config.json"
ADAPTER_SET_FILE = "adapter-set.json.gz"
SOURCE_TOKEN_FILE = "token"  # noqa: S105 - in the directory of a source's Secret
PUBLIC_KEY_SUFFIX = ".pem"  # in the keys directory: KEYID.pem, SubjectPublicKeyInfo

ADAPTER_NAME_PATTERN = r"^[A-Za-z0-9]([A-Za-z0-9._-]*[A-Za-z0-9])?$"
DIGEST_PATTERN = r"^sha256:[0-9a-f]{64}$"
Digest = Annotated[str, Field(pattern=DIGEST_PATTERN, max_length=71)]
AdapterName = Annotated[str, Field(pattern=ADAPTER_NAME_PATTERN, min_length=1, max_length=63)]

# The digest of a checkpoint covers the files that match these patterns, at the top of its directory.
# A change of either list is a new version: the same directory would get another digest.
DIGEST_PATTERNS_VERSION = 1
ADAPTER_FILE_PATTERNS = (
    "adapter_config.json",
    "adapter_model.safetensors",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "generation_config.json",
)
MODEL_FILE_PATTERNS = (
    "config.json",
    "generation_config.json",
    "*.safetensors",
    "model.safetensors.index.json",
    "tokenizer.json",
    "tokenizer.model",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "spiece.model",
    "chat_template.jinja",
)


class Wire(BaseModel):
    """Base of all that crosses the wire: camelCase, frozen, unknown fields ignored (a newer peer may send more)."""

    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, frozen=True, extra="ignore")

    def canonical_json(self) -> bytes:
        """Sorted keys, no spaces, default values left out: a new field with a default changes no hash."""
        value = self.model_dump(mode="json", by_alias=True, exclude_defaults=True)
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()

    def content_hash(self) -> str:
        """`sha256:` and the hex digest of the canonical JSON."""
        return "sha256:" + hashlib.sha256(self.canonical_json()).hexdigest()


class Source(Wire):
    """Where a checkpoint comes from."""

    uri: str = Field(max_length=1024)
    revision: str | None = Field(default=None, max_length=256)


class SourceMount(Wire):
    """A declared source (`spec.sources`) and its URIs. Its directory reaches the runtime as an argument."""

    name: str = Field(max_length=63)
    kind: Literal["claim", "directory", "remote"]
    """`claim`: `pvc://NAME/…`, a mounted PersistentVolumeClaim; `directory`: `file://…` below `uri_prefixes`;
    `remote`: `hf://…` or `https://…` below `uri_prefixes`, its directory is that of its Secret, where it has one."""
    uri_prefixes: tuple[str, ...] = Field(default=(), max_length=16)
    endpoint: str | None = Field(default=None, max_length=512)
    """Of `hf://`: another server that speaks the Hub's API."""


class Task(StrEnum):
    """What a base model is loaded for, by PEFT's names (`task_type` of an adapter)."""

    CAUSAL_LM = "CAUSAL_LM"
    SEQ_2_SEQ_LM = "SEQ_2_SEQ_LM"
    SEQ_CLS = "SEQ_CLS"
    TOKEN_CLS = "TOKEN_CLS"  # noqa: S105 - no password
    QUESTION_ANS = "QUESTION_ANS"
    FEATURE_EXTRACTION = "FEATURE_EXTRACTION"

    @property
    def generates(self) -> bool:
        """Whether such a model answers with text."""
        return self in (Task.CAUSAL_LM, Task.SEQ_2_SEQ_LM)


class BaseModelConfig(Wire):
    """The base model of a pool."""

    name: AdapterName
    source: Source
    digest: Digest | None = None
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    task: Task | None = None
    """None: what the checkpoint's own config.json says."""


class EngineConfig(Wire):
    """Limits of the engine."""

    max_sequences: int = Field(default=16, ge=1, le=1024)
    """Sequences in one batch."""
    max_sequence_length: int = Field(default=4096, ge=16, le=1_048_576)
    """Tokens of prompt and answer together; the model's own limit holds as well."""
    max_mounted_adapters: int = Field(default=32, ge=1, le=4096)
    """Adapters whose weights are held in the memory of the model's device at once."""
    max_rank: int = Field(default=64, ge=1, le=1024)
    """The highest rank of any module of an adapter."""


class MergePart(Wire):
    """One adapter of a merge. The digest comes with the adapter set, unless the spec names one."""

    name: AdapterName
    source: Source
    digest: Digest | None = None
    """Declared in the spec, so that changing it rolls the pods."""
    weight: float = Field(default=1.0, ge=-1_000_000.0, le=1_000_000.0, allow_inf_nan=False)
    """How much of it, the adapter's scale included: W' = W + weight · B·A."""


class MergeConfig(Wire):
    """Merged mode: adapters folded into the base's weights at start, served under one name."""

    name: AdapterName
    method: Literal["linear"] = "linear"
    """`linear`: the weighted sum of what the adapters add."""
    adapters: tuple[MergePart, ...] = Field(min_length=1, max_length=16)
    """In the order of the sum, and each once."""


class RuntimeConfig(Wire):
    """What a pod is born with. A change rolls the pods."""

    contract_version: int = CONTRACT_VERSION
    pool_uid: str = Field(max_length=64)
    base_model: BaseModelConfig
    engine: EngineConfig = EngineConfig()
    sources: tuple[SourceMount, ...] = Field(default=(), max_length=32)
    adapter_startup_seconds: int = Field(default=300, ge=0, le=86_400)
    """How long readiness waits for adapters that are neither ready nor failed."""
    drain_seconds: int = Field(default=110, ge=0, le=86_400)
    """How long running requests may go on after SIGTERM."""
    cache_bytes: int | None = Field(default=None, ge=1)
    """The most that the cache may hold; None: what the disk holds."""
    merge: MergeConfig | None = None
    """None: hot mode."""

    @property
    def served_name(self) -> str:
        """What requests call the model itself: the merge, or else the base."""
        return self.merge.name if self.merge is not None else self.base_model.name

    def config_hash(self) -> str:
        """The first ten hex digits of the content hash: part of the names of a pool's ConfigMaps."""
        return self.content_hash().removeprefix("sha256:")[:10]


class Fault(Wire):
    """An error as it crosses the wire; the same text as in the log."""

    code: ErrorCode
    message: str
    """Without the code; with the hint after a blank line."""

    @classmethod
    def of(cls, error: GraftError) -> Fault:
        return cls(code=error.code, message=error.message)


class AdapterEntry(Wire):
    """One adapter of the catalogue."""

    name: AdapterName
    source: Source
    digest: Digest | None = None
    """The exact bytes to serve. An entry without one is never mounted: it waits for its resolution."""
    fault: Fault | None = None
    """Why there is no digest: the source could not be resolved. Requests get this text, readiness waits no longer."""
    revision: str | None = Field(default=None, max_length=256)
    """The exact revision that `digest` was resolved from; `source` holds the one that was asked for."""
    candidate: Digest | None = None
    """The bytes that are to follow `digest`: mounted and checked beside it, not served yet."""
    scale: float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    pinned: bool = False
    """Mounted from the start and never displaced."""
    inline: bool = True
    """Listed in the pool's spec, so that readiness waits for it."""

    @property
    def exact_source(self) -> Source:
        """Where every pod finds the same bytes, also after a branch has moved on."""
        return self.source.model_copy(update={"revision": self.revision}) if self.revision else self.source


class AdapterSet(Wire):
    """The catalogue: every adapter that a pod answers for."""

    contract_version: int = CONTRACT_VERSION
    pool_uid: str = Field(max_length=64)
    config_hash: str = Field(max_length=64)
    generation: int = Field(ge=1)
    adapters: tuple[AdapterEntry, ...] = Field(default=(), max_length=20_000)

    def entries_hash(self) -> str:
        """The content hash of everything but the generation: what decides whether a new generation is needed."""
        return self.model_copy(update={"generation": 1}).content_hash()

    def to_gzip(self) -> bytes:
        """The canonical JSON, gzipped, the same bytes for the same set."""
        return gzip.compress(self.canonical_json(), mtime=0)

    @classmethod
    def from_gzip(cls, content: bytes) -> AdapterSet:
        """Raises ValueError (also pydantic's ValidationError) and OSError for anything that is not a set."""
        return cls.model_validate_json(gzip.decompress(content))


class AdapterSetVersion(Wire):
    """Which adapter set is in force."""

    generation: int = Field(ge=0)
    hash: str = ""
    """`AdapterSet.content_hash()`"""


class AdapterState(StrEnum):
    """How far an adapter of the catalogue is on a pod."""

    UNRESOLVED = "Unresolved"  # no digest yet
    FETCHING = "Fetching"
    CHECKING = "Checking"  # header checks and the trial mount
    CACHED = "Cached"  # ready; its weights are on disk or in host memory
    MOUNTED = "Mounted"  # ready; its weights are in the memory of the model's device
    MERGED = "Merged"  # ready; it is part of the base's weights
    DRAINING = "Draining"  # removed from the set, requests still run on it
    FAILED = "Failed"


READY_STATES = frozenset({AdapterState.CACHED, AdapterState.MOUNTED, AdapterState.MERGED})


class AdapterReport(Wire):
    """One adapter on one pod. `removed` entries are sent once, so that a poller forgets them."""

    name: AdapterName
    digest: Digest | None = None
    revision: str | None = None
    state: AdapterState
    fault: Fault | None = None
    method: str | None = None
    """PEFT's `peft_type`."""
    rank: int | None = None
    remapped: str | None = None
    """What was done to find its modules in the base, in words; None when they are where its files say."""
    bytes: int | None = None
    """Of the adapter's files."""
    candidate: Digest | None = None
    candidate_state: AdapterState | None = None
    candidate_fault: Fault | None = None
    removed: bool = False

    @property
    def ready(self) -> bool:
        return self.state in READY_STATES


class BaseState(StrEnum):
    """How far the base model is on a pod."""

    FETCHING = "Fetching"
    LOADING = "Loading"
    SERVING = "Serving"
    FAILED = "Failed"


class MergedPart(Wire):
    """One adapter in the weights of a pod's base."""

    name: AdapterName
    digest: Digest
    weight: float


class MergeReport(Wire):
    """What a pod has folded into its base model."""

    name: AdapterName
    """The one that it serves."""
    method: str
    adapters: tuple[MergedPart, ...]


class BaseReport(Wire):
    """The base model on one pod."""

    name: str
    state: BaseState
    digest: Digest | None = None
    revision: str | None = None
    fault: Fault | None = None
    runner: str | None = None
    """`decoder`, `padded` or `encoder`: the route that requests of this model take."""
    merge: MergeReport | None = None
    """Set once it serves with adapters merged in."""


class RuntimeStatus(Wire):
    """What is true in a pod. `adapters` holds the entries that changed after `since`, or all for another boot id."""

    contract_version: int = CONTRACT_VERSION
    boot_id: str
    """New with each start of the runtime: nothing that was known of an earlier one holds."""
    sequence: int
    """To be sent back as `since`."""
    pool_uid: str
    config_hash: str
    ready: bool
    """What /readyz says."""
    base: BaseReport
    adapter_set: AdapterSetVersion
    adapters: tuple[AdapterReport, ...] = ()


class Accepted(Wire):
    """The answer to an adapter set that is in force now."""

    boot_id: str
    adapter_set: AdapterSetVersion


class ResolveRequest(Wire):
    """Asks for the exact version of a source. The answer comes when the bytes are in the pod's cache, or not."""

    source: Source
    kind: Literal["adapter", "model"] = "adapter"


class Resolution(Wire):
    """Either a digest, or a fault, or neither: still under way, ask again."""

    digest: Digest | None = None
    revision: str | None = None
    fault: Fault | None = None


class InspectRequest(Wire):
    """Asks what an adapter is, and whether this pod's base model would take it."""

    source: Source


class Check(StrEnum):
    """What an adapter has to pass before it serves, in this order, after its config and its header."""

    BASE = "Base"  # its modules are in the base model, and of its sizes
    TOKENIZER = "Tokenizer"  # its own tokenizer may run, and there are rows for what it makes
    VALUES = "Values"  # they are finite, and change something
    TRIAL = "Trial"  # the model computes with them


class AdapterInspection(Wire):
    """What the files of an adapter say, and why it would be refused. Fields stay null when the files can't be read."""

    method: str | None = None
    """PEFT's name of it: `LORA`."""
    rank: int | None = None
    """Columns that it takes, the most of one module."""
    module_count: int | None = None
    parameter_count: int | None = None
    bytes: int | None = None
    """Of its config and weights."""
    digest: Digest | None = None
    base_model: str | None = None
    """What it says that it was trained for."""
    remapped: str | None = None
    """What was done to find its modules in the base, in words; None when they are where its files say."""
    unchecked: tuple[Check, ...] = ()
    """The checks that it has not passed: they need more than was there, or come after the fault."""
    fault: Fault | None = None
    """Why it would be refused."""
