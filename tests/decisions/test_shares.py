"""What one namespace may take of the operator: bytes at the same time, and how often something happens."""

from __future__ import annotations

import pytest
from graft_operator.clients import shares
from graft_operator.clients.shares import Pace, Room


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_room_is_counted_by_namespace_and_given_back() -> None:
    room = Room(10)
    assert room.take("team", 6)
    assert not room.take("team", 5)
    assert room.take("other", 10)
    room.give("team", 6)
    assert room.take("team", 10)


def test_a_burst_then_a_pace() -> None:
    clock = Clock()
    pace = Pace(burst=3, per_second=2, clock=clock)
    assert [pace.may("a") for _ in range(4)] == [True, True, True, False]
    assert pace.may("b")
    clock.now += 0.5
    assert [pace.may("a") for _ in range(2)] == [True, False]
    clock.now += 100
    assert [pace.may("a") for _ in range(4)] == [True, True, True, False]


def test_what_has_happened_anyhow_is_waited_for() -> None:
    clock = Clock()
    pace = Pace(burst=10, per_second=2, clock=clock)
    pace.count("a", 10)
    assert pace.wait("a") == 0
    pace.count("a", 6)
    assert pace.wait("a") == 3
    clock.now += 3
    assert pace.wait("a") == 0


def test_keys_at_rest_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shares, "REMEMBERED", 3)
    clock = Clock()
    pace = Pace(burst=1, per_second=1, clock=clock)
    for key in "abc":
        pace.count(key)
    clock.now += 1
    pace.count("d")
    assert set(pace._spent) == {"d"}
