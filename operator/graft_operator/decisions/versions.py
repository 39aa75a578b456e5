"""Which version of an adapter is wanted, and which answers until that one has shown that it can.

A name keeps the version that has served: a new one is tried beside it on every pod, and a later set moves the name. So
a version that turns out to be bad changes nothing but the status, on pods that are born later as well.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet, AdapterSetVersion, AdapterVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import AdapterReport, BaseState, RuntimeStatus

from graft_operator.decisions.observed import Observed
from graft_operator.decisions.wanted_adapters import WantedAdapter
from graft_operator.resource import AdapterStatus


@dataclass(frozen=True)
class Held:
    """What a source holds: its bytes, and the exact revision where it has some."""

    digest: str
    revision: str | None = None


@dataclass(frozen=True)
class Catalogue:
    """What is written down of the adapters that a pool serves, and what its pods say of them."""

    entries: Mapping[str, AdapterEntry]
    """By name, as stored but for what a roll requires: of the current set, or of an earlier one where that has none."""
    statuses: Mapping[str, AdapterStatus]
    """By name, as written last, of those that have served."""
    pods: tuple[RuntimeStatus, ...]
    """What the pods with the current RuntimeConfig say, whose base serves and who answer."""
    reports: Mapping[str, Sequence[AdapterReport]]
    """By name, of these pods."""
    in_force: AdapterSetVersion | None
    """What pods report once they have the stored set."""

    @classmethod
    def of(
        cls, observed: Observed, stored: AdapterSet | None, entries: Iterable[AdapterEntry], current: str
    ) -> Catalogue:
        """Put together what was observed.

        Args:
            stored: the current set as stored.
            entries: of all stored sets, the current one's last.
            current: its config hash.
        """
        answers = ((pod, observed.reports.get(pod.uid)) for pod in observed.pods if pod.counts)
        heard = [observed.report(pod) for pod, answer in answers if answer is not None and answer.unreachable is None]
        pods = tuple(
            status
            for status in heard
            if status is not None and status.config_hash == current and status.base.state is BaseState.SERVING
        )
        reports: dict[str, list[AdapterReport]] = defaultdict(list)
        for report in (report for status in pods for report in status.adapters):
            reports[report.name].append(report)
        version = None if stored is None else stored.version
        statuses = {adapter.name: adapter for adapter in observed.adapter_statuses if adapter.digest is not None}
        written = {
            entry.name: entry.model_copy(update={"required": False}) if entry.required else entry for entry in entries
        }
        return cls(written, statuses, pods, reports, version)

    def served(self, wanted: WantedAdapter) -> AdapterVersion | None:
        """Return the version that answers under a name, as far as is known; None: none ever did."""
        entry, status = self.entries.get(wanted.name), self.statuses.get(wanted.name)
        if entry is not None and entry.serving is not None:
            return entry.serving
        if entry is not None and entry.wanted is not None:
            told = status is not None and status.digest == entry.digest
            shown = any(report.digest == entry.digest and report.ready for report in self.reports.get(wanted.name, ()))
            return entry.wanted if told or shown else None
        if entry is None and status is not None and status.digest is not None and status.uri is not None:
            source = Source(uri=status.uri, revision=status.requested_revision)
            return AdapterVersion(source=source, digest=status.digest, revision=status.revision, scale=wanted.scale)
        return None

    def is_proven(self, entry: AdapterEntry) -> bool:
        """Tell whether every pod that serves has this very entry in force, and its wanted version ready beside it."""
        if self.entries.get(entry.name) != entry or not self.pods:
            return False
        ready = [
            report for report in self.reports.get(entry.name, ()) if report.ready and report.digest == entry.digest
        ]
        return len(ready) == len(self.pods) and all(pod.adapter_set == self.in_force for pod in self.pods)

    def may_be_cured_at_its_source(self, name: str, digest: str) -> bool:
        """Tell whether a pod has a fault with this version that other bytes at its source would end."""
        faults = (report.fault for report in self.reports.get(name, ()) if report.digest == digest)
        return any(fault is not None and fault.code.may_change_at_source for fault in faults)


def entry_of(adapter: WantedAdapter, held: Held | None, catalogue: Catalogue, *, merged: bool) -> AdapterEntry:
    """Make the entry of an adapter, with the version that goes on answering where that is another one.

    Args:
        held: what its source holds; None while that is not known.
        merged: the pool merges its adapters: a merge is made from the wanted versions alone.
    """
    entry = AdapterEntry(
        name=adapter.name,
        source=adapter.source,
        digest=held.digest if held is not None else None,
        revision=held.revision if held is not None else None,
        scale=adapter.scale,
        pinned=adapter.pinned,
        check=adapter.check if not merged else None,
        share=adapter.share,
        inline=adapter.inline,
    )
    served = catalogue.served(adapter)
    if merged or served is None or entry.wanted is None:
        return entry
    if (served.digest, served.scale) == (entry.digest, entry.scale) and entry.wanted.check in {None, served.check}:
        return entry
    beside = entry.model_copy(update={"serving": served})
    return entry if catalogue.is_proven(beside) else beside
