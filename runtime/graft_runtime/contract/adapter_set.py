"""AdapterSet: the catalogue of adapters that a pod answers for; hot: a change touches no pod."""

from __future__ import annotations

import gzip
import zlib
from io import BytesIO

from pydantic import Field

from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.checkpoints import AdapterName, Digest, Revision, Source
from graft_runtime.contract.wire import Fault, Message, Wire

ADAPTER_SET_FILE = "adapter-set.json.gz"
MAX_SET_BYTES = 8 * 2**20
"""Of the JSON of a set: what its most adapters need."""


class AdapterVersion(Wire):
    """A version of an adapter: its bytes, where they are, and how strongly they act."""

    source: Source
    digest: Digest
    revision: str | None = Field(default=None, max_length=256)
    """The exact revision that `digest` was resolved from; `source` holds the one that was asked for."""
    scale: float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    check: str | None = Field(default=None, max_length=71)
    """The content hash of the AnswerCheck that it has to pass, or has passed."""

    @property
    def exact_source(self) -> Source:
        """Return the source where every pod finds the same bytes, also after a branch has moved on."""
        return self.source.model_copy(update={"revision": self.revision}) if self.revision else self.source


class AdapterEntry(Wire):
    """One adapter of the catalogue."""

    name: AdapterName
    source: Source
    digest: Digest | None = None
    """The exact bytes that are wanted. An entry without one is never mounted: it waits for its resolution."""
    fault: Fault | None = None
    """Why there is no digest: the source could not be resolved. Requests get this text, readiness waits no longer."""
    revision: Revision | None = None
    """The exact revision that `digest` was resolved from; `source` holds the one that was asked for."""
    scale: float = Field(default=1.0, ge=-1000.0, le=1000.0, allow_inf_nan=False)
    pinned: bool = False
    """Mounted from the start and never displaced."""
    check: AnswerCheck | None = None
    """What the wanted version has to answer, on each pod, before it may answer anybody else."""
    share: int = Field(default=1, ge=1, le=100)
    """Of the pod, against the shares of other names, while there are more requests than it can take."""
    inline: bool = True
    """Listed in the pool's spec, so that readiness waits for it."""
    required: bool = False
    """Pods that a roll replaces answer under this name: a new one takes no requests before it does so too, or has a set
    without this."""
    serving: AdapterVersion | None = None
    """The version that goes on answering while the wanted one is tried beside it, until a set without it; None: the
    wanted one answers as soon as it is ready."""

    @property
    def wanted(self) -> AdapterVersion | None:
        """Return the version that is wanted; None while its digest is not known."""
        if self.digest is None:
            return None
        check = self.check.content_hash() if self.check is not None else None
        return AdapterVersion(
            source=self.source, digest=self.digest, revision=self.revision, scale=self.scale, check=check
        )

    @property
    def answering_digest(self) -> Digest | None:
        """Return the digest of the version that is to answer under the name; None while there is none."""
        return self.serving.digest if self.serving is not None else self.digest

    @property
    def answering(self) -> AdapterVersion | None:
        """Return the version that is to answer under the name; None while there is none."""
        return self.serving or self.wanted


class AdapterSet(Message):
    """The catalogue: every adapter that a pod answers for."""

    pool_uid: str = Field(max_length=64)
    config_hash: str = Field(max_length=64)
    generation: int = Field(ge=1)
    adapters: tuple[AdapterEntry, ...] = Field(default=(), max_length=20_000)

    @property
    def version(self) -> AdapterSetVersion:
        """Return what a pod reports once this set is in force."""
        return AdapterSetVersion(generation=self.generation, hash=self.content_hash())

    def entries_hash(self) -> str:
        """Return the content hash of everything but the generation: what decides whether a new generation is needed."""
        return self.model_copy(update={"generation": 1}).content_hash()

    def to_gzip(self) -> bytes:
        """Return the canonical JSON, gzipped, the same bytes for the same set."""
        return gzip.compress(self.canonical_json(), mtime=0)

    @classmethod
    def from_gzip(cls, content: bytes) -> AdapterSet:
        """Read a set from gzipped JSON.

        Raises:
            GraftError: UnsupportedContractVersion.
            ValueError, EOFError, OSError: what is no set, or one of more than `MAX_SET_BYTES`.
        """
        try:
            with gzip.open(BytesIO(content)) as unpacked:
                text = unpacked.read(MAX_SET_BYTES + 1)
        except zlib.error as error:
            raise ValueError(f"the adapter set is not gzipped: {error}") from error
        if len(text) > MAX_SET_BYTES:
            raise ValueError(f"the adapter set has more than {MAX_SET_BYTES} bytes of JSON")
        return cls.read(text)


class AdapterSetVersion(Wire):
    """Which adapter set is in force."""

    generation: int = Field(ge=0)
    hash: str = Field(default="", max_length=128)
    """`AdapterSet.content_hash()`"""
