"""Which pods are told of which others, to get checkpoints from them that their sources may not give any more.

Only a pod that lacks bytes is told; what it gets are tokens of a few minutes.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.control import MAX_PEERS
from graft_runtime.contract.status import BaseState, RuntimeStatus

from graft_operator.decisions.observed import Observed, PodView

RENEW_SECONDS = 120.0
"""After that a pod that still lacks bytes is told again, with new tokens."""


@dataclass(frozen=True)
class Introduction:
    """A pod, and others that it may ask for checkpoints, in this order."""

    pod: PodView
    boot_id: str
    peers: tuple[PodView, ...]
    base: str | None = None
    """The digest of the base model that one of them serves from the pod's own source."""

    def differs(self, other: Introduction) -> bool:
        """Tell whether the pod has to be told anew: it has started again, or others are to be asked."""
        return self._told != other._told

    @property
    def _told(self) -> tuple[object, ...]:
        return self.pod.ip, self.boot_id, tuple((peer.uid, peer.ip) for peer in self.peers), self.base


def plan_introductions(observed: Observed, sets: Mapping[str, AdapterSet]) -> tuple[Introduction, ...]:
    """Return the pods that lack bytes, and for each the others that serve.

    Args:
        sets: config hash → the set that the pods with it are to serve.
    """
    heard = [(pod, status) for pod in observed.pods if pod.ip and (status := observed.report(pod)) is not None]
    serving = [(pod, status) for pod, status in heard if status.base.state is BaseState.SERVING]
    serving.sort(key=lambda one: (not one[0].counts, not one[0].ready, one[0].name))
    introductions = []
    for pod, status in heard:
        others = [(peer, told) for peer, told in serving if peer.uid != pod.uid][:MAX_PEERS]
        if others and pod.counts and _lacks_bytes(status, sets.get(status.config_hash)):
            base = _base_of(status, [told for _, told in others])
            introductions.append(Introduction(pod, status.boot_id, tuple(peer for peer, _ in others), base))
    return tuple(introductions)


def _base_of(status: RuntimeStatus, others: Iterable[RuntimeStatus]) -> str | None:
    source = status.base.source
    return next((told.base.digest for told in others if source is not None and told.base.source == source), None)


def _lacks_bytes(status: RuntimeStatus, adapter_set: AdapterSet | None) -> bool:
    """Tell whether a pod has yet to fetch something: its base, or a version of an adapter."""
    if status.base.digest is None:
        return True
    if any(report.digest is not None and report.bytes is None for report in status.adapters):
        return True
    answering = {report.name: report.serving for report in status.adapters}
    entries = () if adapter_set is None else adapter_set.adapters
    return any(entry.serving is not None and answering.get(entry.name) is None for entry in entries)
