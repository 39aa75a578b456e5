"""How many may wait: what ends within a time, at the pace that is seen."""

from __future__ import annotations

import pytest
from graft_runtime.answering.turnover import WAITING_AT_LEAST, WAITING_AT_MOST, Turnover

PLACES = 16
LEAST, MOST = PLACES * (1 + WAITING_AT_LEAST), PLACES * (1 + WAITING_AT_MOST)


def queue(seconds_an_answer: float, until: float) -> Turnover:
    """Return the turnover of a pod with a full queue whose rows take so long each, at this time."""
    turnover = Turnover(PLACES)
    turnover.entered(500, 0.0)
    rounds = int(until / seconds_an_answer)
    for number in range(rounds):
        turnover.left(PLACES, 500 - PLACES, (number + 1) * seconds_an_answer)
        turnover.entered(500, (number + 1) * seconds_an_answer)
    return turnover


def test_a_burst_on_an_idle_pod_is_taken() -> None:
    assert Turnover(PLACES).capacity(0.0) == MOST > 200


@pytest.mark.parametrize(("seconds", "capacity"), [(0.5, MOST), (10.0, PLACES + 192), (60.0, LEAST), (3600.0, LEAST)])
def test_in_the_long_run_as_many_may_wait_as_will_end_in_time(seconds: float, capacity: int) -> None:
    until = seconds * 100
    assert queue(seconds, until).capacity(until) == pytest.approx(capacity, rel=0.35)


def test_before_the_first_answer_has_ended_time_tells() -> None:
    turnover = queue(60.0, 0.0)
    assert [turnover.capacity(now) for now in (1.0, 5.0, 10.0, 30.0)] == [MOST, PLACES + 384, PLACES + 192, LEAST]


def test_a_pod_that_was_slow_and_has_no_queue_any_more_takes_a_burst() -> None:
    turnover = queue(60.0, 600.0)
    assert turnover.capacity(600.0) == LEAST
    turnover.left(500, 0, 601.0)
    assert turnover.capacity(700.0) == MOST


def test_the_time_until_there_is_room_follows_the_pace() -> None:
    assert queue(1.0, 100.0).seconds(32, 100.0) == pytest.approx(2.0, rel=0.3)
    assert queue(20.0, 100.0).seconds(32, 100.0) == pytest.approx(40.0, rel=0.3)
