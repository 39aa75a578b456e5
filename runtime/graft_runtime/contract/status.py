"""RuntimeStatus: what is true in a pod, read back by long poll."""

from __future__ import annotations

from enum import StrEnum

from pydantic import Field

from graft_runtime.contract.adapter_set import AdapterSetVersion
from graft_runtime.contract.checkpoints import AdapterName, Digest, Revision, Source
from graft_runtime.contract.config import Merge
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.wire import Fault, Message, Wire


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
    """Of the wanted version, of which the other fields speak as well."""
    serving: Digest | None = None
    """Of the version that answers under the name, while the set names one beside the wanted; None: none does yet."""
    revision: Revision | None = None
    state: AdapterState
    fault: Fault | None = None
    facts: AdapterFacts | None = None
    """None until its files have been read."""
    bytes: int | None = None
    """Of the adapter's files."""
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


class BaseReport(Wire):
    """The base model on one pod."""

    name: str = Field(max_length=63)
    state: BaseState
    source: Source | None = None
    """As the pod's RuntimeConfig names it."""
    digest: Digest | None = None
    revision: Revision | None = None
    fault: Fault | None = None
    runner: str | None = Field(default=None, max_length=64)
    """`decoder`, `padded` or `encoder`: the route that requests of this model take."""
    merge: Merge | None = None
    """Set once it serves with adapters merged in, with the digest of each."""


class RuntimeStatus(Message):
    """What is true in a pod. `adapters` holds the entries that changed after `since`, or all for another boot id."""

    boot_id: str = Field(max_length=64)
    """New with each start of the runtime: nothing that was known of an earlier one holds."""
    sequence: int = Field(ge=0, le=2**53)
    """To be sent back as `since`."""
    pool_uid: str = Field(max_length=64)
    config_hash: str = Field(max_length=64)
    ready: bool
    """What /readyz says."""
    base: BaseReport
    adapter_set: AdapterSetVersion
    adapters: tuple[AdapterReport, ...] = Field(default=(), max_length=20_000)
