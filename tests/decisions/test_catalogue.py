"""Which adapters are mounted next: pinned and awaited first, the least recently used out, never more than fit."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport, AdapterState
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.pod.aliases import Alias, is_settled, report
from graft_runtime.pod.catalogue import (
    PATIENCE_SECONDS,
    Artifact,
    Residence,
    Step,
    plan_mounts,
)
from graft_runtime.store.cache import Cached
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

SOURCE = Source(uri="pvc://shelf/a")
FACTS = AdapterFacts(method="LORA", rank=4, module_count=1, deltas=["LowRank"])


def artifact(digest: str, **fields: Any) -> Artifact:
    """Fetched and checked, not mounted."""
    options: dict[str, Any] = {"cached": Cached(digest, Path("/nowhere"), 1), "facts": FACTS}
    return Artifact(digest, SOURCE, digest, **(options | fields))


def mounted(digest: str, **fields: Any) -> Artifact:
    return artifact(digest, proven=True, residence=Residence.MOUNTED, **fields)


def planned(artifacts: Iterable[Artifact], limit: int, now: float = 0.0, room: int | None = None) -> list[Step]:
    return plan_mounts(artifacts, limit, now, room).steps


def test_each_is_tried_once_and_not_again() -> None:
    assert planned([artifact("new"), artifact("tried", proven=True)], 8) == [Step("mount", "new")]


def test_what_is_not_checked_or_failed_waits() -> None:
    broken = GraftError(ErrorCode.CORRUPT, "broken")
    waiting = [artifact("fetching", cached=None), artifact("checking", facts=None), artifact("broken", fault=broken)]
    assert planned(waiting, 8) == []


def test_the_least_recently_used_makes_room() -> None:
    held = [mounted("old", last_used=1), mounted("older", last_used=0), mounted("new", last_used=2)]
    steps = planned([*held, artifact("asked", proven=True, waiters=1)], 3)
    assert steps == [Step("unmount", "older"), Step("mount", "asked")], "the engine lets go at once"


def test_as_many_make_room_as_there_must_be_bytes() -> None:
    held = [mounted(name, last_used=at, device_bytes=10) for at, name in enumerate("abc")]
    asked = artifact("asked", proven=True, waiters=1, device_bytes=25)
    assert planned([*held, asked], 9, room=40) == [Step("unmount", "a"), Step("unmount", "b"), Step("mount", "asked")]
    assert planned([*held, asked], 9, room=55) == [Step("mount", "asked")]
    held[0].users = held[1].users = 1
    assert planned([*held, asked], 9, room=40) == [], "nobody goes for nothing"


def test_a_large_one_that_waits_is_in_nobody_s_way() -> None:
    busy = [mounted("busy", users=1, device_bytes=30)]
    large = artifact("large", proven=True, waiters=1, since=0.0, device_bytes=20)
    small = artifact("small", proven=True, waiters=1, since=1.0, device_bytes=5)
    assert planned([*busy, large, small], 9, room=40) == [Step("mount", "small")]


def test_what_can_never_fit_is_refused_and_nobody_goes_for_it() -> None:
    pinned, other = mounted("pinned", pinned=True, device_bytes=30), mounted("other", device_bytes=5)
    assert planned([pinned, other, artifact("new", bytes=11)], 9, room=40) == [Step("too large", "new")]
    assert planned([pinned, other, artifact("new", bytes=10)], 9, room=40) == [
        Step("unmount", "other"),
        Step("mount", "new"),
    ]


def test_pinned_used_and_awaited_ones_stay() -> None:
    held = [mounted("pinned", pinned=True), mounted("used", users=1), mounted("awaited", waiters=1)]
    assert planned([*held, artifact("new")], 3) == []


def test_one_that_leaves_already_is_room_enough() -> None:
    leaving = artifact("leaving", proven=True, residence=Residence.UNMOUNTING)
    assert planned([leaving, mounted("other"), artifact("new")], 2) == [Step("mount", "new")]


def test_first_come_first_served() -> None:
    awaited = [
        artifact(name, proven=True, waiters=1, since=since) for name, since in (("b", 2.0), ("a", 3.0), ("c", 1.0))
    ]
    assert [step.digest for step in planned(awaited, 2)] == ["c", "b"]


def test_the_oldest_place_yields_to_one_that_waited_too_long_and_to_no_more() -> None:
    busy = [
        mounted("late", users=1, turn=2),
        mounted("early", users=1, turn=1),
        mounted("pinned", users=1, pinned=True),
    ]
    waiting = artifact("waiting", proven=True, waiters=1, since=10.0)
    assert planned([*busy, waiting], 3, 10.0 + PATIENCE_SECONDS / 2) == []
    assert planned([*busy, waiting], 3, 10.0 + PATIENCE_SECONDS) == [Step("yield", "early")]
    busy[1].yielding, busy[1].waiters = True, 1
    assert not busy[1].lendable
    assert planned([*busy, waiting], 3, 99.0) == [], "one place is on its way"
    busy[1].users = 0
    assert planned([*busy, waiting], 3, 99.0) == [Step("unmount", "early"), Step("mount", "waiting")]


def test_nobody_yields_to_one_that_went_away() -> None:
    yielding = mounted("a", users=1, yielding=True)
    assert planned([yielding, artifact("gone", proven=True)], 1, 99.0) == [Step("stay", "a")]


def test_removed_ones_leave_when_nobody_runs_on_them() -> None:
    gone, busy = mounted("gone", wanted=False), mounted("busy", wanted=False, users=1)
    assert planned([gone, busy], 8) == [Step("unmount", "gone")]


def test_pinned_come_first_then_awaited_then_new() -> None:
    everything = [artifact("new"), artifact("awaited", proven=True, waiters=1), artifact("pinned", pinned=True)]
    assert [step.digest for step in planned(everything, 2)] == ["pinned", "awaited"]


@pytest.mark.parametrize("code", ErrorCode)
def test_a_new_set_gives_another_try_to_what_may_end_otherwise(code: ErrorCode) -> None:
    refused = artifact("a", fault=GraftError(code, "why"))
    assert refused.may_mount_again == (code.retried or code is ErrorCode.ALL_PLACES_PINNED)
    assert not artifact("a", fault=GraftError(code, "why"), facts=None).may_mount_again, "its files were refused"


def test_where_pinned_ones_hold_every_place_the_rest_is_refused() -> None:
    held = [mounted("a", pinned=True), mounted("b", pinned=True)]
    assert planned([*held, artifact("c")], 2) == [Step("refuse", "c")]
    tried_before = artifact("c", proven=True)
    assert planned([*held, tried_before], 2) == [Step("refuse", "c")]
    tried_before.fault = GraftError(ErrorCode.ALL_PLACES_PINNED, "pinned adapters hold all 2 places")
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
        turn=st.integers(0, 9),
        yielding=st.booleans(),
        since=st.none() | st.floats(0, 9),
        device_bytes=st.integers(1, 9),
    ),
    max_size=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(ARTIFACTS, st.integers(1, 4), st.none() | st.integers(1, 30))
def test_never_more_than_fit_and_never_one_in_use(fields: list[dict[str, Any]], limit: int, room: int | None) -> None:
    everything = {str(number): artifact(str(number), **options) for number, options in enumerate(fields)}
    steps = planned(everything.values(), limit, 9.0, room)
    held = [a for a in everything.values() if a.residence in {Residence.MOUNTING, Residence.MOUNTED}]
    mounts, unmounts = ([step for step in steps if step.action == action] for action in ("mount", "unmount"))
    assert len(held) - len(unmounts) + len(mounts) <= max(limit, len(held))
    if room is not None:
        before = sum(a.size for a in held)
        after = before + sum((1 if s in mounts else -1) * everything[s.digest].size for s in (*mounts, *unmounts))
        assert after <= max(room, before)
    assert [step.action for step in steps][: len(unmounts)] == ["unmount"] * len(unmounts), "before what needs the room"
    assert len({step.digest for step in steps}) == len(steps), "one thing at a time for each"
    for step in steps:
        chosen = everything[step.digest]
        if step.action in {"mount", "refuse", "too large"}:
            assert chosen.residence is Residence.ABSENT
            continue
        assert chosen.residence is Residence.MOUNTED or step.action == "stay"
        assert not (step.action == "unmount" and (chosen.users or (chosen.wanted and chosen.pinned)))
        assert step.action != "yield" or not chosen.pinned


def test_readiness_waits_for_ready_or_a_reason() -> None:
    alias = Alias(AdapterEntry(name="a", source=SOURCE, digest="sha256:" + "0" * 64))

    def told(found: Artifact | None) -> AdapterReport:
        return report(alias, found)

    digest = alias.entry.digest or ""
    assert told(None).state is AdapterState.UNRESOLVED
    entry, pinned = alias.entry, alias.entry.model_copy(update={"pinned": True})
    assert not is_settled(Alias(entry), None)
    assert not is_settled(Alias(entry), artifact(digest))
    assert is_settled(Alias(entry), artifact(digest, proven=True))
    assert not is_settled(Alias(pinned), artifact(digest, proven=True))
    assert is_settled(Alias(pinned), mounted(digest))
    away = artifact(digest, cached=None, fault=GraftError(ErrorCode.SOURCE_UNAVAILABLE, "away"))
    assert told(away).state is AdapterState.FETCHING
    assert is_settled(Alias(pinned), away)
    required = alias.entry.model_copy(update={"required": True})
    assert not is_settled(Alias(required), away), "pods that it is to replace answer under the name"
    assert is_settled(Alias(required), artifact(digest, proven=True))
