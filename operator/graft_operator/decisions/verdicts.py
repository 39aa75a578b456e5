"""The verdicts behind the four conditions, as chains of the checks in `obstacles`: the first finding decides.

`Ready` is the first obstacle of one chain, or none. `Reconciling` and `Stalled` are the first in the same chain that
time ends, and that a person ends. Nothing else decides one of them.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from enum import Enum, auto

from graft_operator.decisions.conditions import ConditionType, Reason, Verdict
from graft_operator.decisions.facts import Facts
from graft_operator.decisions.observed import Failure
from graft_operator.decisions.obstacles import (
    Check,
    Finding,
    adapters_are_loading,
    adapters_failed,
    base_failed,
    base_is_tried_again,
    counted,
    deadline_exceeded,
    is_rolling_out,
    is_scaled_to_zero,
    is_suspended,
    new_pod_waits,
    no_ready_pod_says_that_it_serves,
    pods_are_not_ready,
    pods_are_stuck,
    pods_are_unreachable,
    pool_failed,
    ready_pods_serve_another_mode,
    set_is_pending,
    speaks_another_version,
    unreachable,
)

Verdicts = tuple[tuple[ConditionType, Verdict], ...]


class Ends(Enum):
    """What ends an obstacle."""

    BY_ITSELF = auto()
    """Nobody needs to act: the pool is Reconciling."""
    BY_A_PERSON = auto()
    """A person must act: the pool is Stalled."""
    OPEN = auto()
    """It is as somebody wants it, or nobody knows."""


@dataclass(frozen=True)
class Obstacle:
    """What keeps a pool from being Ready."""

    check: Check
    ends: Ends
    unless: tuple[Check, ...] = ()
    """Earlier obstacles beside which this one is none: what it waits for would not come, or is not wanted."""

    def find(self, facts: Facts) -> Finding | None:
        """Return what stands in the way."""
        if any(earlier(facts) is not None for earlier in self.unless):
            return None
        return self.check(facts)


_NO_PODS_TO_COME = (pool_failed, is_scaled_to_zero, speaks_another_version)
_STUCK = (base_failed, pods_are_stuck, new_pod_waits, deadline_exceeded)
"""Beside these a roll goes no further before a person acts."""

READY: tuple[Obstacle, ...] = (
    Obstacle(is_suspended, Ends.OPEN),
    Obstacle(pool_failed, Ends.BY_A_PERSON),
    Obstacle(is_scaled_to_zero, Ends.OPEN),
    Obstacle(base_failed, Ends.BY_A_PERSON),  # before the roll that it holds up
    Obstacle(base_is_tried_again, Ends.BY_ITSELF),
    Obstacle(speaks_another_version, Ends.BY_A_PERSON),
    Obstacle(pods_are_stuck, Ends.BY_A_PERSON),
    Obstacle(new_pod_waits, Ends.BY_A_PERSON),
    Obstacle(deadline_exceeded, Ends.BY_A_PERSON),
    Obstacle(is_rolling_out, Ends.BY_ITSELF, unless=(pool_failed, speaks_another_version, *_STUCK)),
    Obstacle(pods_are_not_ready, Ends.BY_ITSELF, unless=(*_NO_PODS_TO_COME, *_STUCK)),
    Obstacle(pods_are_unreachable, Ends.OPEN),
    Obstacle(set_is_pending, Ends.BY_ITSELF, unless=(*_NO_PODS_TO_COME, *_STUCK)),
    Obstacle(adapters_failed, Ends.BY_A_PERSON),
    Obstacle(adapters_are_loading, Ends.BY_ITSELF, unless=(*_NO_PODS_TO_COME, *_STUCK)),
)

AVAILABLE: tuple[Check, ...] = (
    is_scaled_to_zero,
    no_ready_pod_says_that_it_serves,
    base_failed,
    base_is_tried_again,
    ready_pods_serve_another_mode,
    pods_are_not_ready,
)
"""Why nothing is served, where nothing is served."""


def verdicts_of(facts: Facts) -> Verdicts:
    """Decide the four conditions."""
    return (
        (ConditionType.AVAILABLE, _available(facts)),
        (ConditionType.READY, _ready(facts)),
        (ConditionType.RECONCILING, _ended(facts, Ends.BY_ITSELF, Reason.SETTLED)),
        (ConditionType.STALLED, _ended(facts, Ends.BY_A_PERSON, Reason.NO_FAULT)),
    )


def verdicts_of_failure(failure: Failure, *, served: bool) -> Verdicts:
    """Decide the four conditions where the spec can't be read.

    Args:
        served: a Ready pod serves a base model all the same.
    """
    failed = Verdict(False, failure.reason, failure.message)
    return (
        (ConditionType.AVAILABLE, _served(None) if served else failed),
        (ConditionType.READY, failed),
        (ConditionType.RECONCILING, Verdict(False, Reason.SETTLED)),
        (ConditionType.STALLED, Verdict(True, failure.reason, failure.message)),
    )


def _available(facts: Facts) -> Verdict:
    if facts.pool.spec.replicas and any(facts.serves(pod) for pod in facts.ready_pods):
        return _served(facts.merge_name)
    finding = _first(check(facts) for check in AVAILABLE) or unreachable(facts)
    return Verdict(False, finding.reason, finding.message)


def _ready(facts: Facts) -> Verdict:
    finding = _first(obstacle.find(facts) for obstacle in READY)
    if finding is not None:
        return Verdict(False, finding.reason, finding.message)
    merged = "" if facts.merge_name is None else f" merged as `{facts.merge_name}`"
    message = f"{counted(len(facts.pods), 'pod')}, {counted(len(facts.adapters), 'adapter')}{merged}"
    return Verdict(True, Reason.ALL_READY, message)


def _ended(facts: Facts, ends: Ends, none: Reason) -> Verdict:
    """Decide a condition that holds as long as there is an obstacle that ends so; `none`: its reason without one."""
    if is_suspended(facts) is not None:
        return Verdict(False, Reason.SUSPENDED)
    finding = _first(obstacle.find(facts) for obstacle in READY if obstacle.ends is ends)
    return Verdict(False, none) if finding is None else Verdict(True, finding.reason, finding.message)


def _first(findings: Iterable[Finding | None]) -> Finding | None:
    return next((finding for finding in findings if finding is not None), None)


def _served(merge_name: str | None) -> Verdict:
    if merge_name is not None:
        return Verdict(True, Reason.MERGE_SERVED, f"the merge `{merge_name}` is served")
    return Verdict(True, Reason.BASE_SERVED, "the base model is served")
