"""Names, versions and leases against an engine that is played by hand."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import weakref
from typing import Any

import msgspec
import pytest
from graft_runtime.contract.facts import DeltaKind
from graft_runtime.contract.status import AdapterState
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    Capabilities,
    Dropped,
    EngineFault,
    Mount,
    MountFailed,
    Unmount,
)
from graft_runtime.pod import lending

from tests.support.played_engine import LOADED, Files, Holder, sha


async def test_two_names_of_the_same_bytes_share_a_mount(play: Any) -> None:
    played = play()
    await played.apply(a="1", b="1")
    assert [type(command) for command in await played.answer()] == [Mount]
    a, b = [await played.acquire(name, 1) for name in ("a", "b")]
    assert a.digest == b.digest
    await played.apply(b="1")
    a.release()
    await played.settle()
    assert played.sent == [], "b still needs it"


async def test_a_request_waits_for_its_adapter_and_no_longer_than_it_may(play: Any) -> None:
    played = play()
    await played.apply(a="1")
    with pytest.raises(GraftError, match="not mounted yet") as caught:
        await played.acquire("a", 0.01)
    assert caught.value.code is ErrorCode.LOADING
    waiting = asyncio.create_task(played.acquire("a", 10))
    await played.settle()
    await played.answer()
    assert (await waiting).digest == sha("1")


async def test_who_waits_for_a_name_hears_when_it_fails_or_goes(play: Any) -> None:
    played = play()
    await played.apply(a="1", b="2")
    failing, going = [asyncio.create_task(played.acquire(name, 10)) for name in ("a", "b")]
    await played.settle()
    fault = EngineFault(ErrorCode.SHAPE_MISMATCH, "it does not fit")
    played.residency.on_event(MountFailed(sha("1"), fault))
    with pytest.raises(GraftError, match="does not fit"):
        await failing
    await played.apply(a="1")
    await played.answer()
    with pytest.raises(GraftError, match="not served here any more"):
        await going


async def test_an_adapter_s_fault_keeps_nothing_of_those_who_are_told_it(play: Any) -> None:
    played = play()
    played.bad = [sha("1")]
    await played.apply(a="1")
    await played.answer()

    async def ask() -> weakref.ref[Files]:
        body = Files()
        with contextlib.suppress(GraftError):
            await played.acquire("a")
            raise AssertionError("it has a fault")
        return weakref.ref(body)

    asked = [await ask() for _ in range(3)]
    gc.collect()
    assert [body() for body in asked] == [None, None, None]


async def test_an_adapter_in_use_is_not_displaced(play: Any) -> None:
    played = play(limit=1)
    await played.apply(a="1")
    await played.answer()
    lease = await played.acquire("a", 1)
    await played.apply(a="1", b="2")
    waiting = asyncio.create_task(played.acquire("b", 10))
    await played.settle()
    assert played.sent == []
    lease.release()
    lease.release()
    await played.settle()
    assert await played.answer() == [Unmount(sha("1"), keep=True), Mount(sha("2"), "/nowhere", "b")]
    assert (await waiting).digest == sha("2")
    assert (played.state("a"), played.residency.tier("a")) == (AdapterState.CACHED, "host")


async def test_what_is_kept_in_host_memory_is_known_until_it_is_dropped_or_removed(play: Any) -> None:
    played = play(limit=1)
    await played.apply(a="1", b="2", c="3")
    while played.sent:
        await played.answer()
    assert [played.residency.tier(name) for name in "abc"] == ["host", "host", "device"]
    assert (await played.acquire("c", 1)).tier == "device"
    played.residency.on_event(Dropped([sha("1"), sha("9")]))
    assert played.residency.tier("a") == "disk"
    await played.apply(a="1", c="3")
    assert await played.answer() == [Unmount(sha("2"))], "nobody will ask for it again"
    assert played.residency.tier("b") is None


async def test_an_engine_is_asked_for_what_it_is_capable_of(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = Capabilities(frozenset({DeltaKind.LOW_RANK}), weights=False, adapters_per_request=1)
    played = play(limit=1)
    played.kept_in = "disk"
    played.residency.base_loaded(msgspec.structs.replace(LOADED, capabilities=plain))
    await played.apply(a="1", b="2", scales={"b": 0.5})
    await played.work()
    assert (played.residency.tier("a"), played.residency.report("a").fault) == ("disk", None), (
        "b had its place after it"
    )
    fault = played.residency.report("b").fault
    assert fault.code is ErrorCode.NOT_SCALABLE
    with pytest.raises(GraftError, match="this engine serves adapters with weight 1 alone"):
        await played.acquire("b")
    dora = Files.facts.model_copy(update={"deltas": frozenset({DeltaKind.LOW_RANK, DeltaKind.GAIN})})
    monkeypatch.setattr(Files, "facts", dora)
    await played.apply(a="1", b="2", c="3")
    assert [command.digest for command in await played.answer() if isinstance(command, Mount)] == []
    fault = played.residency.report("c").fault
    assert (played.state("c"), fault.code) == (AdapterState.FAILED, ErrorCode.UNSUPPORTED_METHOD)
    assert "can't be served on this engine: it does not compute Gain" in fault.message


async def test_the_longest_waiting_is_next(play: Any) -> None:
    played = play(limit=1)
    await played.apply(a="1", b="2", c="3")
    while played.sent:
        await played.answer()
    lease, served = await played.acquire("c", 1), []

    async def ask(name: str) -> None:
        (await played.acquire(name, 10)).release()
        served.append(name)

    waiting = []
    for name in "bab":
        waiting.append(asyncio.create_task(ask(name)))
        await played.settle()
    lease.release()
    await played.settle()
    while played.sent:
        await played.answer()
    await asyncio.gather(*waiting)
    assert served == ["b", "b", "a"]


async def test_one_that_is_always_in_use_yields_its_place(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lending, "PATIENCE_SECONDS", 0.01)
    monkeypatch.setattr("graft_runtime.pod.catalogue.PATIENCE_SECONDS", 0.01)
    played = play(limit=1)
    await played.apply(a="1", b="2")
    while played.sent:
        await played.answer()
    busy = await played.acquire("b", 1)
    cold = asyncio.create_task(played.acquire("a", 10))

    async def ask_without_end() -> None:
        while True:
            (await played.acquire("b", 0.05)).release()
            await asyncio.sleep(0.002)

    with pytest.raises(GraftError) as caught:  # it takes requests until another has waited too long
        await ask_without_end()
    assert caught.value.code is ErrorCode.LOADING
    again = asyncio.create_task(played.acquire("b", 10))
    await played.settle()
    busy.release()
    await played.settle()
    assert await played.answer() == [Unmount(sha("2"), keep=True), Mount(sha("1"), "/nowhere", "a")]
    lease = await cold
    lease.release()
    await played.settle()
    await played.answer()
    assert (await again).digest == sha("2")


async def test_a_removed_adapter_drains_and_its_requests_are_revoked_in_the_end(play: Any) -> None:
    played = play()
    await played.apply(a="1")
    await played.answer()
    lease, holder = await played.acquire("a", 1), Holder()
    lease.holder = holder
    await played.apply()
    assert played.state("a") is AdapterState.DRAINING
    assert played.sent == []
    with pytest.raises(GraftError, match="`a` was removed"):
        await asyncio.wait_for(holder.failed, 5)
    lease.release()
    await played.settle()
    assert await played.answer() == [Unmount(sha("1"))]
    assert played.state("a") is None
    assert played.residency.digests == frozenset()


async def test_a_version_that_comes_back_while_it_leaves_is_mounted_again(play: Any) -> None:
    played = play()
    await played.apply(a="1")
    await played.answer()
    await played.apply()
    await played.apply(a="1")
    waiting = asyncio.create_task(played.acquire("a", 10))
    await played.settle()
    assert await played.answer() == [Unmount(sha("1"))]
    assert [type(command) for command in await played.answer()] == [Mount]
    assert (await waiting).digest == sha("1")


async def test_a_name_without_a_version_is_told_so(play: Any) -> None:
    played = play()
    await played.apply(a=None)
    with pytest.raises(GraftError) as caught:
        await played.acquire("a", 1)
    assert caught.value.code is ErrorCode.RESOLVING


async def test_several_adapters_are_held_together_or_not_at_all(play: Any) -> None:
    played = play(limit=2)
    await played.apply(a="1", b="2", c="3", d="4")
    await played.work()  # each is tried once
    groups = [asyncio.create_task(played.residency.acquire(names, 10)) for names in (["a", "c"], ["b", "d"])]
    for group, digests in zip(groups, ("13", "24"), strict=True):
        await played.work()
        leases = group.result()
        assert [lease.digest for lease in leases] == [sha(digest) for digest in digests]
        for lease in leases:
            lease.release()


async def test_what_a_group_waited_for_in_vain_is_free_again(play: Any) -> None:
    played = play(limit=2)
    await played.apply(a="1", b="2", c="3")
    waiting = asyncio.create_task(played.residency.acquire(["a", "b"], 10))
    await played.work()
    with pytest.raises(GraftError, match="not mounted yet") as caught:
        await played.residency.acquire(["a", "c"], 0.01)
    assert caught.value.code is ErrorCode.LOADING
    with pytest.raises(GraftError, match="names 3 adapters, and this pool mounts at most 2") as caught:
        await played.residency.acquire(["a", "b", "c"], 10)
    assert caught.value.code is ErrorCode.NOT_COMPOSABLE
    for lease in waiting.result():
        lease.release()
    single = asyncio.create_task(played.acquire("c", 10))
    await played.work()
    assert single.result().digest == sha("3")


async def test_a_tokenizer_with_more_tokens_than_rows_is_a_fault_and_takes_no_place(play: Any) -> None:
    played = play(limit=1)
    played.tokenizers = {"a": 320, "b": 329, "c": 319}
    played.mounted = {sha("2"): {"vocabulary_size": 330}}
    await played.apply(a="1", b="2", c="3")
    await played.work()
    report = played.residency.report("a")
    assert (report.state, report.fault.code) == (AdapterState.FAILED, ErrorCode.TOKENIZER_MISMATCH)
    assert "up to 320, and the base model has 320 rows" in report.fault.message
    assert {played.state("b"), played.state("c")} == {AdapterState.CACHED, AdapterState.MOUNTED}
    with pytest.raises(GraftError, match="up to 320"):
        await played.acquire("a")
    assert await played.answer() == [], "it is not tried again"
