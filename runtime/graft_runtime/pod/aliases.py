"""What a pod knows of each name: which version of its adapter answers, and what is reported. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterVersion
from graft_runtime.contract.status import AdapterReport, AdapterState
from graft_runtime.contract.wire import Fault
from graft_runtime.pod.catalogue import Artifact, Residence, scale_fault


@dataclass
class Alias:
    """One name of the catalogue."""

    entry: AdapterEntry
    serving: AdapterVersion | None = None
    """What answers under this name: the version that is to, once it is ready; until then the one before."""
    removed: bool = False

    @property
    def version(self) -> AdapterVersion | None:
        """Return what requests under this name get, or wait for; None while the entry has no digest."""
        return self.serving or self.entry.answering

    @property
    def scale(self) -> float:
        """Return how strongly acts what requests under this name get."""
        return self.version.scale if self.version is not None else self.entry.scale

    @property
    def versions(self) -> Mapping[str, AdapterVersion]:
        """Return, by digest, all that this name needs: what answers, what is to answer, what is wanted."""
        needed = (self.entry.wanted, self.entry.serving, self.serving)
        return {version.digest: version for version in needed if version is not None}


def report(alias: Alias, artifact: Artifact | None) -> AdapterReport:
    """Return what the status says of a name.

    Args:
        alias: the name.
        artifact: of the wanted version, where there is one.
    """
    entry = alias.entry
    serving = alias.serving.digest if alias.serving is not None and entry.serving is not None else None
    if artifact is None:
        state = AdapterState.UNRESOLVED if entry.fault is None else AdapterState.FAILED
        return AdapterReport(name=entry.name, serving=serving, state=state, fault=entry.fault)
    return AdapterReport(
        name=entry.name,
        digest=artifact.digest,
        serving=serving,
        revision=entry.revision or entry.source.revision,
        state=AdapterState.DRAINING if alias.removed else _state(entry, artifact),
        fault=_fault(entry, artifact),
        facts=artifact.facts,
        bytes=artifact.bytes,
    )


def _state(entry: AdapterEntry, artifact: Artifact) -> AdapterState:
    return artifact.state if scale_fault(entry.name, entry.scale, artifact) is None else AdapterState.FAILED


def _fault(entry: AdapterEntry, artifact: Artifact) -> Fault | None:
    fault = artifact.fault or scale_fault(entry.name, entry.scale, artifact)
    return Fault.of(fault) if fault is not None else None


def is_settled(entry: AdapterEntry, answering: Artifact | None) -> bool:
    """Return whether readiness need not wait for an adapter any longer.

    Args:
        entry: the adapter's.
        answering: the version that is to answer under its name, where its digest is known.
    """
    if answering is None or entry.answering is None:
        return entry.fault is not None
    if answering.fault is not None or scale_fault(entry.name, entry.answering.scale, answering) is not None:
        return not entry.required
    return answering.proven and not (entry.pinned and answering.residence is not Residence.MOUNTED)
