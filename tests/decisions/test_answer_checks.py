"""A version with a check answers its prompt before it answers anybody else, in a pod whose engine is played by hand."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.status import AdapterState
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.pod.answer_checks import CHECKS_AT_ONCE

from tests.support.played_engine import sha

CHECK = AnswerCheck(prompt="2 + 2 =", contains="4")
OTHER = AnswerCheck(prompt="2 + 3 =", contains="5")


@pytest.mark.parametrize(
    ("check", "answer", "passes"),
    [
        (CHECK, " that is 4.", True),
        (CHECK, " that is five.", False),
        (AnswerCheck(message="2 + 2?", equals="4"), " 4\n", True),
        (AnswerCheck(message="2 + 2?", equals="four"), "four.", False),
        (AnswerCheck(message="2 + 2?", equals="four"), "Four", False),
    ],
)
def test_an_answer_passes_or_not(check: AnswerCheck, answer: str, passes: bool) -> None:
    assert check.passes(answer) is passes


async def test_a_version_that_answers_as_expected_takes_the_name(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): "4"}
    await played.apply(a="1", checks={"a": CHECK})
    (entry,) = played.entries
    assert not played.residency.is_settled(entry)
    await played.work()
    assert (played.asked, played.state("a")) == ([sha("1")], AdapterState.MOUNTED)
    assert played.residency.is_settled(entry)
    assert (await played.acquire("a")).digest == sha("1")
    await played.apply(a="1", checks={"a": CHECK})
    assert played.asked == [sha("1")], "once"


async def test_a_version_that_answers_otherwise_is_a_fault_of_the_name(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): "five" * 1000}
    await played.apply(a="1", b="1", checks={"a": CHECK})
    await played.work()
    report = played.residency.report("a")
    assert (report.state, report.ready, report.fault.code) == (AdapterState.FAILED, False, ErrorCode.CHECK_FAILED)
    assert report.fault.message.startswith("adapter `a` answers its check with 'fivefive")
    assert "expected a text that holds '4'" in report.fault.message
    assert len(report.fault.message) < 600, "a model may say anything, at any length"
    with pytest.raises(GraftError, match="answers its check with"):
        await played.acquire("a")
    assert (await played.acquire("b")).digest == sha("1"), "another name asks nothing of it"


async def test_requests_wait_until_a_first_version_has_passed(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): GraftError(ErrorCode.OVERLOADED, "full")}
    await played.apply(a="1", checks={"a": CHECK})
    await played.work()
    assert (played.state("a"), played.residency.report("a").fault) == (AdapterState.CHECKING, None)
    with pytest.raises(GraftError, match="not mounted yet"):
        await played.acquire("a", 0.01)


async def test_a_check_that_finds_no_room_is_tried_again(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("graft_runtime.pod.answer_checks.RETRY_SECONDS", 0.0)
    played = play()
    played.answers = {sha("1"): GraftError(ErrorCode.OVERLOADED, "full")}
    await played.apply(a="1", checks={"a": CHECK})
    await played.work()
    waiting = asyncio.create_task(played.acquire("a"))
    await played.settle()
    assert not waiting.done()
    played.answers = {sha("1"): "4"}
    assert (await waiting).digest == sha("1")


async def test_what_can_not_be_asked_has_failed(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): GraftError(ErrorCode.NO_CHAT_TEMPLATE, "`a` has no chat template")}
    await played.apply(a="1", checks={"a": AnswerCheck(message="2 + 2?", contains="4")})
    await played.work()
    fault = played.residency.report("a").fault
    assert fault.code is ErrorCode.CHECK_FAILED
    assert "can't answer its check: `a` has no chat template" in fault.message


async def test_the_version_that_serves_goes_on_beside_one_that_fails_its_check_also_in_pods_that_are_born_later(
    play: Any,
) -> None:
    for born_later in (False, True):
        played = play()
        played.answers = {sha("1"): "4", sha("2"): "five"}
        if not born_later:
            await played.apply(a="1", checks={"a": CHECK})
            await played.work()
        await played.apply(a="2", serving={"a": "1"}, checks={"a": CHECK})
        await played.work()
        report = played.residency.report("a")
        assert (report.digest, report.serving, report.fault.code) == (sha("2"), sha("1"), ErrorCode.CHECK_FAILED)
        assert played.residency.is_settled(played.entries[0])
        assert (await played.acquire("a")).digest == sha("1")
        assert played.asked.count(sha("1")) == (not born_later), "it has served: it need not show that it can"


async def test_a_version_that_has_served_here_is_not_checked_again_when_the_set_goes_back_to_it(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): "4", sha("2"): "five"}
    await played.apply(a="1", checks={"a": CHECK})
    await played.work()
    await played.apply(a="2", serving={"a": "1"}, checks={"a": CHECK})
    await played.work()
    played.answers = {}
    await played.apply(a="1", checks={"a": CHECK})
    assert (await played.acquire("a", 0.01)).digest == sha("1")


async def test_another_check_of_the_same_bytes_is_run_beside_them(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): "4"}
    await played.apply(a="1", checks={"a": CHECK})
    await played.work()
    await played.apply(a="1", serving={"a": "1"}, checks={"a": OTHER})
    await played.work()
    report = played.residency.report("a")
    assert (played.asked, report.serving, report.fault.code) == ([sha("1")] * 2, sha("1"), ErrorCode.CHECK_FAILED)
    assert (await played.acquire("a")).digest == sha("1")
    await played.apply(a="1")
    assert played.residency.report("a").ready, "no check is asked for any more"


async def test_a_check_that_is_not_wanted_any_more_changes_nothing(play: Any) -> None:
    played = play()
    played.answers = {sha("1"): GraftError(ErrorCode.OVERLOADED, "full"), sha("2"): "4"}
    await played.apply(a="1", checks={"a": CHECK})
    await played.work()
    await played.apply(a="2", checks={"a": CHECK})
    await played.work()
    assert (await played.acquire("a")).digest == sha("2")
    await played.apply()
    await played.work()
    assert played.residency.report("a") is not None, "a request still runs on it"


async def test_a_new_version_is_checked_where_pinned_ones_hold_every_place(play: Any) -> None:
    played = play(limit=1)
    played.answers = {sha("2"): "4"}
    await played.apply(a="1", pinned=["a"])
    await played.work()
    await played.apply(a="2", serving={"a": "1"}, pinned=["a"], checks={"a": CHECK})
    await played.work()
    assert (played.asked, played.residency.report("a").ready) == ([sha("2")], True)
    lease = await played.acquire("a")
    assert (lease.digest, played.residency.tier("a")) == (sha("1"), "device"), "it has its place again"
    lease.release()
    await played.apply(a="2", pinned=["a"], checks={"a": CHECK})
    await played.work()
    assert (await played.acquire("a")).digest == sha("2")


async def test_checks_take_a_few_places_of_a_pod_whatever_they_ask(play: Any) -> None:
    played, asked, go_on = play(limit=8), [], asyncio.Event()

    async def ask(name: str, check: AnswerCheck) -> str:
        asked.append(name)
        await go_on.wait()
        return "4"

    played.residency.answer_checks(lambda checked: ask)
    names = "abcdef"
    await played.apply(**dict(zip(names, "123456", strict=True)), checks=dict.fromkeys(names, CHECK))
    await played.work()
    assert len(asked) == CHECKS_AT_ONCE
    go_on.set()
    await played.settle()
    assert sorted(asked) == list(names), "each once"
    assert all(played.residency.report(name).ready for name in names)
