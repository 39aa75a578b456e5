"""Which sources have to be resolved to a digest, by which pod, and when again."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from graft_runtime.contract.checkpoints import Source

from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.observed import Observed, PodView


@dataclass(frozen=True)
class Resolve:
    """A source whose digest one of these pods is to find out, the first of them if it answers."""

    pods: tuple[PodView, ...]
    source: Source


def plan_resolves(adapters: Iterable[AdapterPlan], observed: Observed, current: str, now: float) -> tuple[Resolve, ...]:
    """Return what to ask of pods: each source in question that may be asked about by `now` (Unix seconds)."""
    pods = _pods_to_ask(observed, current)
    if not pods:
        return ()
    sources = {plan.asked: None for plan in adapters if plan.asked is not None and _ask_at(observed, plan) <= now}
    return tuple(Resolve(pods, source) for source in sources)


def waits(adapters: Iterable[AdapterPlan], resolves: Sequence[Resolve], observed: Observed, now: float) -> list[float]:
    """Return the seconds until sources that are not in `resolves` may be asked about again."""
    asked = {resolve.source for resolve in resolves}
    seconds = [_ask_at(observed, plan) - now for plan in adapters if plan.asked is not None and plan.asked not in asked]
    return [wait for wait in seconds if wait > 0]


def _pods_to_ask(observed: Observed, current: str) -> tuple[PodView, ...]:
    """Return the pods that answer and have the sources of the current spec: new ones first, of these the Ready ones."""
    newest = {pod.uid for pod in observed.newest_pods}
    able = [
        pod
        for pod in observed.pods
        if pod.counts and (status := observed.report(pod)) and status.config_hash == current
    ]
    return tuple(sorted(able, key=lambda pod: (pod.uid not in newest, not pod.ready, pod.name)))


def _ask_at(observed: Observed, plan: AdapterPlan) -> float:
    answer = None if plan.asked is None else observed.resolutions.get(plan.asked)
    return max(plan.look_from, 0.0 if answer is None else answer.retry_at)
