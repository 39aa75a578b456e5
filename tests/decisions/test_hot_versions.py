"""Which version of an adapter answers under its name in a pod, against an engine that is played by hand."""

from __future__ import annotations

from typing import Any

import pytest
from graft_runtime.contract.facts import DeltaKind
from graft_runtime.contract.status import AdapterState
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import EngineFault, Mount, MountFailed

from tests.support.played_engine import sha


async def test_a_name_switches_when_its_new_version_is_ready_and_never_back(play: Any) -> None:
    played = play()
    await played.apply(a="1")
    await played.answer()
    old = await played.acquire("a", 1)
    await played.apply(a="2")
    assert (await played.acquire("a", 1)).digest == sha("1"), "until the new one is ready"
    await played.answer()
    new = await played.acquire("a", 1)
    assert (old.digest, new.digest) == (sha("1"), sha("2"))
    assert played.sent == [], "requests still run on the old one"


async def test_a_scale_that_has_no_meaning_is_a_fault_of_the_name(play: Any) -> None:
    played = play()
    played.mounted = {sha("2"): {"deltas": frozenset({DeltaKind.GAIN})}}
    await played.apply(a="1", b="2", scales={"a": 2.0, "b": 2.0})
    await played.answer()
    assert played.state("a") is AdapterState.MOUNTED
    assert played.residency.report("b").fault.code is ErrorCode.NOT_SCALABLE
    with pytest.raises(GraftError, match="`b` has scale 2"):
        await played.acquire("b")
    await played.apply(a="2", b="2", scales={"a": 2.0})
    assert (played.state("b"), played.residency.report("b").fault) == (AdapterState.MOUNTED, None)
    assert played.residency.report("a").fault.code is ErrorCode.NOT_SCALABLE
    assert (await played.acquire("a")).digest == sha("1"), "the one before goes on answering"


async def test_a_name_stays_with_the_version_that_serves_until_a_set_moves_it(play: Any) -> None:
    played = play()
    await played.apply(a="1")
    await played.work()
    await played.apply(a="2", serving={"a": "1"})
    await played.work()
    report = played.residency.report("a")
    assert (report.digest, report.state, report.serving) == (sha("2"), AdapterState.MOUNTED, sha("1"))
    assert (await played.acquire("a")).digest == sha("1"), "the new version has been tried; others may not have it yet"
    await played.apply(a="2")
    assert (await played.acquire("a")).digest == sha("2")
    assert played.residency.report("a").serving is None


async def test_a_pod_that_is_born_later_serves_what_the_others_do_beside_a_bad_version(play: Any) -> None:
    played = play()
    await played.apply(a="2", serving={"a": "1"})
    bad = EngineFault(ErrorCode.SHAPE_MISMATCH, "it does not fit")
    commands = {command.digest for command in played.sent if isinstance(command, Mount)}
    assert commands == {sha("1"), sha("2")}
    (entry,) = played.entries
    assert not played.residency.is_settled(entry)
    played.residency.on_event(MountFailed(sha("2"), bad))
    assert not played.residency.is_settled(entry), "the version that is to answer does not yet"
    played.sent[:] = [command for command in played.sent if command.digest == sha("1")]
    await played.work()
    assert played.residency.is_settled(entry)
    assert (await played.acquire("a")).digest == sha("1")
    report = played.residency.report("a")
    assert (report.state, report.fault.code, report.serving) == (
        AdapterState.FAILED,
        ErrorCode.SHAPE_MISMATCH,
        sha("1"),
    )


async def test_a_version_that_serves_keeps_its_scale(play: Any) -> None:
    played = play()
    played.mounted = {sha("1"): {"deltas": frozenset({DeltaKind.GAIN})}}
    await played.apply(a="1")
    await played.work()
    await played.apply(a="1", scales={"a": 2.0}, serving={"a": "1"})
    await played.work()
    assert played.residency.report("a").fault.code is ErrorCode.NOT_SCALABLE
    assert (await played.acquire("a")).served.weight == 1.0


async def test_a_new_version_is_tried_where_pinned_ones_hold_every_place(play: Any) -> None:
    played = play(limit=1)
    await played.apply(a="1", pinned=["a"])
    await played.work()
    await played.apply(a="2", serving={"a": "1"}, pinned=["a"])
    await played.work()
    assert played.residency.report("a").state in {AdapterState.CACHED, AdapterState.MOUNTED}
    assert played.residency.report("a").fault is None
    lease = await played.acquire("a")
    assert lease.digest == sha("1")
    lease.release()
    assert played.residency.tier("a") == "device", "it has its place again"
    await played.apply(a="2", pinned=["a"])
    await played.work()
    assert (await played.acquire("a")).digest == sha("2")


async def test_a_request_that_waits_for_the_old_version_gets_the_new_one_when_the_name_moves(play: Any) -> None:
    played = play()
    await played.apply(a="2", serving={"a": "1"})
    with pytest.raises(GraftError, match="not mounted yet"):
        await played.acquire("a", 0.01)
    await played.work()
    assert (await played.acquire("a")).digest == sha("1")
