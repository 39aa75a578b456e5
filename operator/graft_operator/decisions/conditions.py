"""The four conditions, the reasons they may bear, and how a new verdict becomes a condition.

A reason may also be an `ErrorCode`: the fault of a base model or an adapter, in the words of the runtime.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from enum import StrEnum

from graft_operator.resource import Condition


class ConditionType(StrEnum):
    """What is said of a pool, and of an Adapter."""

    AVAILABLE = "Available"
    """At least one Ready pod serves the base model; of a merged pool, the merge."""
    READY = "Ready"
    """Everything in this spec is true on all desired pods."""
    RECONCILING = "Reconciling"
    """Something is still on its way, and nobody needs to do anything for it."""
    STALLED = "Stalled"
    """Something will not get better before a person acts."""


class Reason(StrEnum):
    """Why a condition is as it is."""

    MERGE_SERVED = "MergeServed"
    """A Ready pod reports that it serves the merge."""
    ADAPTER_SERVED = "AdapterServed"
    """Of an Adapter: Ready pods answer under its name."""
    BASE_SERVED = "BaseServed"
    """A Ready pod reports that it serves the base model."""
    ALL_READY = "AllReady"
    """All desired pods are Ready with every adapter of the spec."""
    SCALED_TO_ZERO = "ScaledToZero"
    """spec.replicas is 0: no pod is wanted."""
    SUSPENDED = "Suspended"
    """spec.suspend is true: nothing but the status is written."""
    INVALID_SPEC = "InvalidSpec"
    """The spec was stored, yet this operator can't accept it."""
    TOO_LARGE = "TooLarge"
    """The namespace has more AdapterDeployments, or larger ones, than the operator remembers of one namespace."""
    POOL_NOT_FOUND = "PoolNotFound"
    """The AdapterDeployment that an Adapter names is not there: it is served once it is."""
    NAME_TAKEN = "NameTaken"
    """The base model, an entry of spec.adapters or an older Adapter has the name of an Adapter already."""
    TOO_MANY_ADAPTERS = "TooManyAdapters"
    """Older Adapters have all the room that one AdapterDeployment has for them."""
    FOREIGN_OBJECT = "ForeignObject"
    """An object that the pool needs exists already and belongs to somebody else."""
    CONTESTED = "Contested"
    """Somebody changes an object of the pool again and again: it is set right once a minute at most."""
    APPLY_REJECTED = "ApplyRejected"
    """The API server refuses an object of the pool."""
    PODS_STUCK = "PodsStuck"
    """A container can't start: its image can't be had, or a Secret or ConfigMap that its variables are read from."""
    ROLLING_OUT = "RollingOut"
    """Pods of the current spec are being made or replaced."""
    PROGRESS_DEADLINE_EXCEEDED = "ProgressDeadlineExceeded"
    """The pods did not become Ready in time, or can't be made."""
    PODS_NOT_READY = "PodsNotReady"
    """Fewer pods are Ready than spec.replicas."""
    PODS_UNREACHABLE = "PodsUnreachable"
    """Pods are Ready, but the operator can't reach their control port."""
    ADAPTER_SET_PENDING = "AdapterSetPending"
    """Not every pod has the current adapter set yet."""
    ADAPTERS_LOADING = "AdaptersLoading"
    """Adapters are being resolved, fetched, checked or mounted."""
    ADAPTERS_FAILED = "AdaptersFailed"
    """Adapters have faults; status.adapters names them."""
    SETTLED = "Settled"
    """Nothing is on its way."""
    NO_FAULT = "NoFault"
    """Nothing needs a person."""


@dataclass(frozen=True)
class Verdict:
    """One condition before it is dated."""

    holds: bool
    reason: str
    message: str = ""


def dated(
    verdicts: Sequence[tuple[ConditionType, Verdict]], previous: Sequence[Condition], generation: int, now: float
) -> tuple[Condition, ...]:
    """Date verdicts as the conditions of `generation`; lastTransitionTime stays where the status did not change.

    A condition that says the same as before is that very object: a pool may have thousands of Adapters.

    Args:
        now: Unix seconds.
    """
    before = {condition.type: condition for condition in previous}
    return tuple(_dated(kind, verdict, before.get(kind), generation, now) for kind, verdict in verdicts)


def _dated(kind: ConditionType, verdict: Verdict, before: Condition | None, generation: int, now: float) -> Condition:
    status = "True" if verdict.holds else "False"
    same = before is not None and before.status == status and before.last_transition_time
    if before is not None and same and _told(before) == (verdict.reason, verdict.message, generation):
        return before
    return Condition(
        type=kind.value,
        status=status,
        reason=str(verdict.reason),
        message=verdict.message,
        observed_generation=generation,
        last_transition_time=before.last_transition_time if before is not None and same else timestamp(now),
    )


def _told(condition: Condition) -> tuple[str, str, int | None]:
    return condition.reason, condition.message, condition.observed_generation


def timestamp(now: float) -> str:
    """Format Unix seconds as `2026-01-31T12:00:00Z`."""
    return datetime.fromtimestamp(now, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
