"""What a pod knows of each name: which version of its adapter answers, and what is reported. No clock, no I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterVersion
from graft_runtime.contract.status import READY_STATES, AdapterReport, AdapterState
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import GraftError
from graft_runtime.pod.catalogue import Artifact, Residence, scale_fault

VersionKey = tuple[str, float, str | None]
"""What a check of a version speaks of: its digest, its scale, the content hash of the check."""


@dataclass(frozen=True)
class Checked:
    """What has come of a check."""

    version: VersionKey
    fault: GraftError | None = None
    """None: it has passed."""


@dataclass
class Alias:
    """One name of the catalogue."""

    entry: AdapterEntry
    serving: AdapterVersion | None = None
    """What answers under this name: the version that is to, once it is ready; until then the one before."""
    removed: bool = False
    checked: Checked | None = None
    """What has come of the last check."""

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

    @property
    def check_to_run(self) -> VersionKey | None:
        """Return which version is to be checked; None: none, or it has been."""
        wanted = self.entry.wanted
        if wanted is None or not self.awaits_check(wanted) or self._result_of(wanted) is not None:
            return None
        return _key(wanted)

    def awaits_check(self, version: AdapterVersion) -> bool:
        """Tell whether a version has to pass a check before it may answer under this name; none that has answered."""
        if version.check is None or version in (self.serving, self.entry.serving):
            return False
        result = self._result_of(version)
        return result is None or result.fault is not None

    def fault_of(self, version: AdapterVersion, artifact: Artifact) -> GraftError | None:
        """Return why a version can't answer under this name, whatever it does under others."""
        result = self._result_of(version) if self.awaits_check(version) else None
        return scale_fault(self.entry.name, version.scale, artifact) or (result.fault if result is not None else None)

    @property
    def may_be_lent(self) -> bool:
        """Tell whether what requests under this name get need pass no check any more."""
        return self.version is not None and not self.awaits_check(self.version)

    def may_answer(self, version: AdapterVersion, artifact: Artifact) -> bool:
        """Tell whether a version has shown that it can answer under this name."""
        return artifact.proven and not self.awaits_check(version) and self.fault_of(version, artifact) is None

    def _result_of(self, version: AdapterVersion) -> Checked | None:
        return self.checked if self.checked is not None and self.checked.version == _key(version) else None


def _key(version: AdapterVersion) -> VersionKey:
    return version.digest, version.scale, version.check


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
    wanted = entry.wanted
    assert wanted is not None, "there is a version of it"
    fault = alias.fault_of(wanted, artifact)
    state = AdapterState.DRAINING if alias.removed else _state(artifact, fault, checking=alias.awaits_check(wanted))
    told = artifact.fault or fault
    return AdapterReport(
        name=entry.name,
        digest=artifact.digest,
        serving=serving,
        revision=entry.revision or entry.source.revision,
        state=state,
        fault=Fault.of(told) if told is not None else None,
        facts=artifact.facts,
        bytes=artifact.bytes,
    )


def _state(artifact: Artifact, fault: GraftError | None, *, checking: bool) -> AdapterState:
    if fault is not None:
        return AdapterState.FAILED
    return AdapterState.CHECKING if checking and artifact.state in READY_STATES else artifact.state


def is_settled(alias: Alias, answering: Artifact | None) -> bool:
    """Return whether readiness need not wait for an adapter any longer.

    Args:
        alias: its name.
        answering: the version that is to answer under it, where its digest is known.
    """
    entry = alias.entry
    version = entry.answering
    if answering is None or version is None:
        return entry.fault is not None
    if answering.fault is not None or alias.fault_of(version, answering) is not None:
        return not entry.required
    return alias.may_answer(version, answering) and not (entry.pinned and answering.residence is not Residence.MOUNTED)
