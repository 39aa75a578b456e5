"""Which requests a pod takes, and which it turns away, and for whose sake."""

from __future__ import annotations

import pytest
from graft_runtime.answering.admission import Admission
from graft_runtime.errors import GraftError


def taken(admission: Admission, name: str) -> int:
    """Return how many requests to a name are taken until one is not."""
    count = 0
    while True:
        try:
            admission.enter(1, [name])
        except GraftError:
            return count
        count += 1


async def test_the_first_leaves_room_for_the_second_and_the_second_for_the_third() -> None:
    admission = Admission(2)  # 66 in all
    assert taken(admission, "a") == 49
    assert taken(admission, "b") == 17
    admission.leave(40, ["a"])
    assert taken(admission, "a") == 15, "to half of 49"
    assert taken(admission, "b") == 7
    assert taken(admission, "c") == 16


async def test_places_go_by_shares() -> None:
    shares = {"small": 1, "large": 3}
    admission = Admission(8, lambda name: shares.get(name, 1))  # 264 in all, 198 of them by shares
    admission.enter(1, ["small"])
    admission.enter(1, ["large"])
    assert taken(admission, "large") == 198 * 3 // 4 - 1
    assert taken(admission, "small") == 198 // 4 - 1


async def test_over_one_s_own_share_is_another_fault_than_over_the_pod_s() -> None:
    admission = Admission(2)
    taken(admission, "a")
    with pytest.raises(GraftError) as caught:
        admission.enter(1, ["a"])
    assert (caught.value.code, caught.value.code.http_status, caught.value.field) == ("OverShare", 429, "model")
    taken(admission, "b")
    with pytest.raises(GraftError) as caught:
        admission.enter(1, ["c"])
    assert (caught.value.code, caught.value.code.http_status) == ("Overloaded", 503)


async def test_one_request_of_any_size_is_taken_when_there_is_no_other() -> None:
    admission = Admission(1)
    admission.enter(128, ["a"])
    admission.leave(128, ["a"])
    admission.enter(128, ["a"])


async def test_a_sum_counts_for_each_of_its_adapters() -> None:
    admission = Admission(2)
    admission.enter(24, ["a", "b"])
    with pytest.raises(GraftError, match="`b`"):
        admission.enter(1, ["b"])
    admission.leave(24, ["a", "b"])
    admission.enter(1, ["b"])
    assert admission.in_flight == 1
