"""What changed from one status to the next, as Kubernetes Events: transitions only."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

from graft_operator.decisions.adapter_status import full_message, is_failed, is_ready
from graft_operator.decisions.conditions import ConditionType
from graft_operator.resource import AdapterDeploymentStatus, AdapterStatus, AttachedAdapterStatus, Condition

MAX_TRANSITIONS = 20
"""At once; status.adapters has them all."""


@dataclass(frozen=True)
class Transition:
    """One event: a word and a sentence."""

    kind: Literal["Normal", "Warning"]
    reason: str
    message: str


def transitions(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> tuple[Transition, ...]:
    """Return what turned from one status to the next."""
    turned = _of_conditions(before.conditions, after.conditions)
    return (*turned, *_of_adapters(before, after))[:MAX_TRANSITIONS]


def attached_transitions(before: AttachedAdapterStatus, after: AttachedAdapterStatus) -> tuple[Transition, ...]:
    """Return what turned from one status of an Adapter to the next."""
    turned = _of_conditions(before.conditions, after.conditions)
    if after.remapped and after.remapped != before.remapped:
        turned.append(Transition("Warning", "AdapterRemapped", _remapped(after)))
    return tuple(turned)


def _of_conditions(before: Iterable[Condition], after: Iterable[Condition]) -> list[Transition]:
    was = {condition.type: condition for condition in before}
    turned = (_of_condition(was.get(condition.type), condition) for condition in after)
    return [transition for transition in turned if transition is not None]


def _of_condition(before: Condition | None, after: Condition) -> Transition | None:
    held, holds = before is not None and before.status == "True", after.status == "True"
    if after.type == ConditionType.READY and holds and not held:
        return Transition("Normal", "Ready", after.message)
    if after.type == ConditionType.AVAILABLE and held and not holds:
        return Transition("Warning", after.reason, f"no longer available: {after.message}")
    if after.type == ConditionType.STALLED and holds and (not held or before is None or before.reason != after.reason):
        return Transition("Warning", after.reason, after.message)
    return None


def _of_adapters(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> list[Transition]:
    was = {adapter.name: adapter for adapter in before.adapters}
    events: list[Transition] = []
    for adapter in after.adapters:
        old = was.get(adapter.name)
        if is_ready(adapter) and not (old is not None and is_ready(old)):
            events.append(Transition("Normal", "AdapterReady", f"adapter `{adapter.name}` is ready: {adapter.digest}"))
            if adapter.remapped:
                events.append(Transition("Warning", "AdapterRemapped", _remapped(adapter)))
        elif is_failed(adapter) and adapter.reason and (old is None or old.reason != adapter.reason):
            events.append(Transition("Warning", adapter.reason, full_message(adapter)))
    gone = was.keys() - {adapter.name for adapter in after.adapters}
    events += [Transition("Normal", "AdapterRemoved", f"adapter `{name}` was removed") for name in sorted(gone)]
    return events


def _remapped(adapter: AdapterStatus) -> str:
    return f"adapter `{adapter.name}` names its modules otherwise than its base model: {adapter.remapped}"
