"""Waits between tries double, and end at the longest."""

from __future__ import annotations

import pytest
from graft_runtime.backoff import Backoff


@pytest.mark.parametrize(("failures", "seconds"), [(1, 0.5), (2, 1), (3, 2), (4, 4), (5, 5), (6, 5), (10_000, 5)])
def test_waits_double_up_to_the_longest(failures: int, seconds: float) -> None:
    assert Backoff(0.5, 5.0).seconds(failures) == seconds


def test_the_first_wait_is_no_longer_than_the_longest() -> None:
    assert Backoff(3.0, 1.0).seconds(1) == 1.0
