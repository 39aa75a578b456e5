"""What a pod does with its adapters, whichever mode it is in."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.config import Merge
from graft_runtime.contract.status import AdapterReport
from graft_runtime.errors import GraftError
from graft_runtime.messages import BaseLoaded, Dropped, MergeSource, Mounted, MountFailed, Tier, Unmounted
from graft_runtime.pod.leases import Lease

AdapterEvent = Mounted | MountFailed | Unmounted | Dropped


class NamedAdapters(Protocol):
    """The adapters that requests can name."""

    @property
    def default_model(self) -> str | None:
        """Return the model of requests that name none; None: they must name one."""

    @property
    def merged_digest(self) -> str | None:
        """Return the digests in the base's weights, in the order of the merge; None for an unchanged base."""

    def names(self) -> Iterator[str]:
        """Iterate over the names of the set that this pod reports on, in its order."""

    def is_served(self, name: str) -> bool:
        """Return whether requests may use a name."""

    def share(self, name: str) -> int:
        """Return the share of a name, which is 1 where nothing says otherwise."""

    def unknown(self, name: str, field: str = "model") -> GraftError:
        """Return the 404 for a name that requests may not use, sent in `field`."""

    async def acquire(self, names: Sequence[str], wait_seconds: float) -> tuple[Lease, ...]:
        """Wait until all of these are mounted and hold them for one request; one lease a name, in this order.

        Raises:
            GraftError: UnknownModel, Resolving, Loading, NotComposable, or the fault of one of them.
        """


class AskVersion(Protocol):
    """Has the wanted version of a name answer."""

    async def __call__(self, name: str, check: AnswerCheck) -> str:
        """Return its answer. Raises GraftError: why there is none."""


class Adapters(NamedAdapters, Protocol):
    """All that a pod does with its adapters. One event loop."""

    def answer_checks(self, asking: Callable[[NamedAdapters], AskVersion]) -> None:
        """Have the checks of wanted versions answered, before the first set is in force.

        Args:
            asking: makes of the adapters that are checked what asks them.
        """

    @property
    def digests(self) -> frozenset[str]:
        """Return the digests that the cache must keep. Read by other threads."""

    def apply(self, adapter_set: AdapterSet) -> None:
        """Put an adapter set in force."""

    def report(self, name: str) -> AdapterReport | None:
        """Return what is true of an adapter; None where there is none of this name."""

    def is_settled(self, entry: AdapterEntry) -> bool:
        """Tell whether readiness need not wait any longer for an adapter of the set in force."""

    def tier(self, name: str) -> Tier | None:
        """Return where the version that answers under a name is; None: in no tier yet, or no such name."""

    def on_event(self, event: AdapterEvent) -> None:
        """Take what the engine says of an adapter."""

    @property
    def merged(self) -> Merge | None:
        """Return what the base serves with in its weights; None: nothing, or the base does not serve yet."""

    async def merge_sources(self, failed: Callable[[GraftError], None]) -> tuple[MergeSource, ...]:
        """Return what is to go into the base before it serves, checked as far as files can be; wait for it.

        Args:
            failed: called with each reason for waiting; a later set may remove it.
        """

    def base_loaded(self, loaded: BaseLoaded) -> None:
        """Take what the engine says of the base that serves from now on."""

    def base_failed(self, error: GraftError) -> None:
        """Take why the base will never serve."""
