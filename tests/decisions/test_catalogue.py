"""Which adapters are mounted next: pinned and awaited first, the least recently used out, never more than fit."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graft_runtime.contract import AdapterEntry, AdapterReport, AdapterState, Source
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.cache import Cached
from graft_runtime.store.catalogue import Alias, Artifact, Residence, Step, is_settled, plan_mounts, report
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOURCE = Source(uri="pvc://shelf/a")


def artifact(digest: str, **fields: Any) -> Artifact:
    """Fetched and checked, not mounted."""
    options: dict[str, Any] = {"cached": Cached(digest, Path("/nowhere"), 1), "method": "LORA", "rank": 4}
    return Artifact(digest, SOURCE, digest, **(options | fields))


def mounted(digest: str, **fields: Any) -> Artifact:
    return artifact(digest, proven=True, residence=Residence.MOUNTED, **fields)


def test_each_is_tried_once_and_not_again() -> None:
    assert plan_mounts([artifact("new"), artifact("tried", proven=True)], 8) == [Step("mount", "new")]


def test_what_is_not_checked_or_failed_waits() -> None:
    broken = GraftError(ErrorCode.CORRUPT, "broken")
    waiting = [artifact("fetching", cached=None), artifact("checking", method=None), artifact("broken", fault=broken)]
    assert plan_mounts(waiting, 8) == []


def test_the_least_recently_used_makes_room() -> None:
    held = [mounted("old", last_used=1), mounted("older", last_used=0), mounted("new", last_used=2)]
    assert plan_mounts([*held, artifact("asked", proven=True, waiters=1)], 3) == [Step("unmount", "older")]


def test_pinned_used_and_awaited_ones_stay() -> None:
    held = [mounted("pinned", pinned=True), mounted("used", users=1), mounted("awaited", waiters=1)]
    assert plan_mounts([*held, artifact("new")], 3) == []


def test_one_that_leaves_already_is_room_enough() -> None:
    leaving = artifact("leaving", proven=True, residence=Residence.UNMOUNTING)
    assert plan_mounts([leaving, mounted("other"), artifact("new")], 2) == []


def test_removed_ones_leave_when_nobody_runs_on_them() -> None:
    gone, busy = mounted("gone", wanted=False), mounted("busy", wanted=False, users=1)
    assert plan_mounts([gone, busy], 8) == [Step("unmount", "gone")]


def test_pinned_come_first_then_awaited_then_new() -> None:
    everything = [artifact("new"), artifact("awaited", proven=True, waiters=1), artifact("pinned", pinned=True)]
    assert [step.digest for step in plan_mounts(everything, 2)] == ["pinned", "awaited"]


def test_where_pinned_ones_hold_every_place_the_rest_is_refused() -> None:
    held = [mounted("a", pinned=True), mounted("b", pinned=True)]
    assert plan_mounts([*held, artifact("c")], 2) == [Step("refuse", "c")]
    tried_before = artifact("c", proven=True)
    assert plan_mounts([*held, tried_before], 2) == [Step("refuse", "c")]
    tried_before.fault = GraftError(ErrorCode.NO_CAPACITY, "pinned adapters hold all 2 places")
    assert tried_before.state is AdapterState.FAILED


ARTIFACTS: st.SearchStrategy[list[dict[str, Any]]] = st.lists(
    st.builds(
        dict,
        residence=st.sampled_from(Residence),
        pinned=st.booleans(),
        wanted=st.booleans(),
        proven=st.booleans(),
        users=st.integers(0, 1),
        waiters=st.integers(0, 1),
        last_used=st.integers(0, 9),
    ),
    max_size=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ARTIFACTS, st.integers(1, 4))
def test_never_more_than_fit_and_never_one_in_use(fields: list[dict[str, Any]], limit: int) -> None:
    everything = {str(number): artifact(str(number), **options) for number, options in enumerate(fields)}
    steps = plan_mounts(everything.values(), limit)
    held = [a for a in everything.values() if a.residence is not Residence.ABSENT]
    mounts = [step for step in steps if step.action == "mount"]
    assert len(held) + len(mounts) <= max(limit, len(held))
    assert len({step.digest for step in steps}) == len(steps), "one thing at a time for each"
    for step in steps:
        chosen = everything[step.digest]
        if step.action == "unmount":
            assert chosen.residence is Residence.MOUNTED
            assert not chosen.users
            assert not (chosen.wanted and chosen.pinned)
        else:
            assert chosen.residence is Residence.ABSENT


def test_readiness_waits_for_ready_or_a_reason() -> None:
    alias = Alias(AdapterEntry(name="a", source=SOURCE, digest="sha256:" + "0" * 64))

    def told(found: Artifact | None) -> AdapterReport:
        return report(alias, found, None)

    digest = alias.entry.digest or ""
    assert told(None).state is AdapterState.UNRESOLVED
    assert not is_settled(told(None), pinned=False)
    assert not is_settled(told(artifact(digest)), pinned=False)
    assert is_settled(told(artifact(digest, proven=True)), pinned=False)
    assert not is_settled(told(artifact(digest, proven=True)), pinned=True)
    assert is_settled(told(mounted(digest)), pinned=True)
    unreachable = GraftError(ErrorCode.SOURCE_UNAVAILABLE, "away")
    assert told(artifact(digest, cached=None, fault=unreachable)).state is AdapterState.FETCHING
    assert is_settled(told(artifact(digest, cached=None, fault=unreachable)), pinned=True)
