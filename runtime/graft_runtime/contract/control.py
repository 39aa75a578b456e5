"""The control port: what the operator asks of a pod beside its status.

Not in the Service. The bearer token is a JWT signed with Ed25519, audience = the pod's UID.

    PUT  /adapter-set                       AdapterSet → 200 Accepted; 409 for an older one
    GET  /status?boot=&since=&wait=25       → 200 RuntimeStatus with the changed entries only, 204 when nothing changed
    POST /resolve                           ResolveRequest → 200 Resolution
    POST /inspect                           InspectRequest → 200 AdapterInspection: a dry run, nothing is mounted
    PUT  /peers                             Peers → 204

    GET  /checkpoints/DIGEST                → 200 CheckpointFiles; 404: not needed by this pod, or not here
    GET  /checkpoints/DIGEST/FILE           → 200, 206 its bytes
"""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field, IPvAnyAddress

from graft_runtime.contract.adapter_set import AdapterSetVersion
from graft_runtime.contract.checkpoints import CheckpointFile, Digest, Revision, Source
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.wire import Fault, Message, Wire

TOKEN_ALGORITHM = "EdDSA"  # noqa: S105
TOKEN_ISSUER = "graft-operator"  # noqa: S105
PUBLIC_KEY_SUFFIX = ".pem"  # in the keys directory: KEYID.pem, SubjectPublicKeyInfo
MAX_PEERS = 8
MAX_CHECKPOINT_FILES = 1000


def checkpoint_audience(pod_uid: str) -> str:
    """Return the audience of a token that opens a pod's checkpoints and nothing else."""
    return f"{pod_uid}/checkpoints"


class Accepted(Message):
    """The answer to an adapter set that is in force now."""

    boot_id: str = Field(max_length=64)
    adapter_set: AdapterSetVersion


class ResolveRequest(Message):
    """Asks which exact version of an adapter a source holds. The answer comes when the bytes are in the pod's cache."""

    source: Source


class Resolution(Message):
    """Either a digest, or a fault, or neither: still under way, ask again."""

    digest: Digest | None = None
    revision: Revision | None = None
    fault: Fault | None = None


class InspectRequest(Message):
    """Asks what an adapter is, and whether this pod's base model would take it."""

    source: Source


class Check(StrEnum):
    """What an adapter has to pass before it serves, in this order, after its config and its header."""

    BASE = "Base"  # its modules are in the base model, and of its sizes
    TOKENIZER = "Tokenizer"  # its own tokenizer may run, and there are rows for what it makes
    VALUES = "Values"  # they are finite, and change something
    TRIAL = "Trial"  # the model computes with them


class AdapterInspection(Message):
    """What the files of an adapter say, and why it would be refused. Fields stay null when the files can't be read."""

    facts: AdapterFacts | None = None
    parameter_count: int | None = None
    bytes: int | None = None
    """Of its config and weights."""
    digest: Digest | None = None
    base_model: str | None = None
    """What it says that it was trained for."""
    unchecked: tuple[Check, ...] = ()
    """The checks that it has not passed: they need more than was there, or come after the fault."""
    fault: Fault | None = None
    """Why it would be refused."""


class Peer(Wire):
    """A pod that may be asked for checkpoints."""

    address: IPvAnyAddress
    token: str = Field(max_length=2048)
    """For its checkpoints."""


class Peers(Message):
    """Introduces other pods of the pool, in place of those before."""

    peers: tuple[Peer, ...] = Field(default=(), max_length=MAX_PEERS)
    """In the order in which they are to be asked."""
    base: Digest | None = None
    """Of the base model that they serve from the same source as this pod's; None: they don't."""


class CheckpointFiles(Message):
    """The files of a checkpoint, which together make its digest."""

    files: tuple[CheckpointFile, ...] = Field(max_length=MAX_CHECKPOINT_FILES)
