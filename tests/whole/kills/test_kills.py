"""kill -9 of each process in turn while clients ask without a pause: all is Ready again within a bound, every answer is
right or an error in OpenAI's shape, and a connection that ends early can't be taken for an answer.

docs/architecture.md states the bounds.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest

from tests.whole.kills.judging import RIGHT, describe, told

if TYPE_CHECKING:
    from tests.support.load import Load
    from tests.whole.kills.pool import Pool

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(300)]

# Seconds from the kill to all Ready.
OPERATOR_BOUND = 30.0
RUNTIME_BOUND = 60.0
CONTROL_PLANE_BOUND = 30.0

HANG_BOUND = 25.0
"""Seconds until the status counts a pod that hangs no longer, nor what it last said."""

ROUTED_AWAY = 5.0
"""Seconds from the kill after which the Service leads nobody to the dead pod any more."""
HELD, HELD_SECONDS = 2, 0.5
ERROR, CUT = "error in OpenAI's shape", "connection refused or cut"


def test_every_answer_is_right_before_the_first_kill(load: Load) -> None:
    assert told(load, 0.0).keys() == {RIGHT}


def test_nobody_notices_a_killed_operator(pool: Pool, load: Load) -> None:
    pods, operators = pool.restarts(), pool.operator_restarts()

    killed = kill(pool.process("graft-operator", "run"))

    once_more = {uid: count + 1 for uid, count in operators.items()}
    until_ready(pool, lambda: pool.operator_restarts() == once_more, killed + OPERATOR_BOUND)
    assert told(load, killed).keys() == {RIGHT}
    assert pool.restarts() == pods


@pytest.mark.parametrize(("victim", "end"), [("engine process", ERROR), ("API process", CUT)])
def test_a_killed_runtime_comes_back_while_the_other_pod_answers(pool: Pool, load: Load, victim: str, end: str) -> None:
    """Whoever waits for the pod is told by its API process, unless it is that which is dead."""
    before = pool.restarts()
    uid = min(before, key=lambda uid: before[uid])
    process = pool.process("graft-runtime", uid)
    if victim == "engine process":
        process = pool.process("graft_runtime.engine", below=process)
    os.kill(process, signal.SIGSTOP)  # so that there is somebody who waits for it
    pool.eventually(lambda: load.held(HELD_SECONDS) >= HELD, "requests wait for the victim", time.monotonic() + 10)

    killed = kill(process)

    once_more = before | {uid: before[uid] + 1}
    until_ready(pool, lambda: pool.restarts() == once_more, killed + RUNTIME_BOUND)
    counts = told(load, killed)
    assert counts[end] >= HELD
    assert counts[RIGHT] > counts.total() // 2
    late = [result for result in load.results(killed + ROUTED_AWAY) if result.outcome != RIGHT]
    assert not late, "\n".join(describe(result, killed) for result in late)


@pytest.mark.parametrize("victim", ["kube-apiserver", "etcd"])
def test_nobody_notices_a_killed_part_of_the_control_plane(pool: Pool, load: Load, victim: str) -> None:
    pods, process = pool.restarts(), pool.cluster.process(victim)

    killed = kill(process)

    until_ready(pool, lambda: pool.cluster.process(victim) != process, killed + CONTROL_PLANE_BOUND)
    assert told(load, killed).keys() == {RIGHT}
    assert pool.restarts() == pods


def test_the_status_tells_of_a_pod_that_hangs_and_it_goes_on_where_it_was(pool: Pool, load: Load) -> None:
    """It hangs for less than its liveness probe allows; clients wait meanwhile, or are led to the other pod."""
    before = pool.restarts()
    process = pool.process("graft-runtime", min(before))
    both = (process, pool.process("graft_runtime.engine", below=process))
    hung = time.monotonic()
    for one in both:
        os.kill(one, signal.SIGSTOP)
    try:
        pool.eventually(lambda: pool.ready_replicas() == (1, {1}), "the pod no longer counts", hung + HANG_BOUND)
        assert not pool.is_ready()
    finally:
        for one in both:
            os.kill(one, signal.SIGCONT)
    pool.eventually(lambda: pool.ready_replicas() == (2, {2}), "the pod counts again", hung + RUNTIME_BOUND)
    pool.eventually(pool.is_ready, "the pool is Ready", hung + RUNTIME_BOUND)
    assert told(load, hung).keys() == {RIGHT}
    assert pool.restarts() == before


def kill(process: int) -> float:
    """kill -9; the time of the monotonic clock."""
    now = time.monotonic()
    os.kill(process, signal.SIGKILL)
    return now


def until_ready(pool: Pool, is_back: Callable[[], bool], deadline: float) -> None:
    """The victim runs again, and a change of the spec is carried out on every pod: what is told is not of old."""

    def changed() -> bool:
        pool.change()
        return True

    pool.eventually(is_back, "the victim runs again", deadline)
    pool.eventually(changed, "a change is taken", deadline)
    pool.eventually(pool.is_ready, "the pool is Ready", deadline)
