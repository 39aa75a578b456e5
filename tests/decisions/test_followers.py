"""Following pods: what they say is merged, the newest set wins, and a pod that hangs or restarts is noticed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

import pytest
from graft_operator.clients.followers import MAX_REPORTS, FollowerLimits, PodFollower, updated
from graft_operator.clients.resolutions import Resolutions
from graft_operator.clients.runtime_client import (
    OtherVersionError,
    PodAddress,
    RuntimeClient,
    RuntimeRefusedError,
    RuntimeUnreachableError,
)
from graft_operator.clients.shares import Room
from graft_operator.decisions.observed import PodReport
from graft_operator.keys import PoolKey
from graft_runtime.backoff import Backoff
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.control import Accepted, Resolution, ResolveRequest
from graft_runtime.contract.status import AdapterReport, AdapterState, BaseReport, BaseState, RuntimeStatus
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError

from tests.support.adapter_sets import set_of
from tests.support.waiting import until

KEY = PoolKey("team", "support")
POD = PodAddress("uid", "10.0.0.1")


def status(
    *names: str, boot: str = "first", sequence: int = 1, removed: tuple[str, ...] = (), generation: int = 1
) -> RuntimeStatus:
    reports = [AdapterReport(name=name, state=AdapterState.MOUNTED) for name in names]
    reports += [AdapterReport(name=name, state=AdapterState.DRAINING, removed=True) for name in removed]
    return RuntimeStatus(
        boot_id=boot,
        sequence=sequence,
        pool_uid="pool",
        config_hash="hash",
        ready=True,
        base=BaseReport(name="base", state=BaseState.SERVING),
        adapter_set=AdapterSetVersion(generation=generation),
        adapters=tuple(reports),
    )


def names_of(found: RuntimeStatus | None) -> list[str]:
    return [] if found is None else [report.name for report in found.adapters]


@pytest.mark.parametrize(
    ("known", "news", "expected"),
    [
        pytest.param(None, status("a"), ["a"], id="the-first-word"),
        pytest.param(status("a"), status("b", sequence=2), ["a", "b"], id="only-what-changed"),
        pytest.param(status("a", "b"), status(removed=("a",), sequence=2), ["b"], id="removed"),
        pytest.param(status("a"), status("b", boot="second"), ["b"], id="a-new-boot-forgets-everything"),
    ],
)
def test_what_a_pod_says_is_merged(known: RuntimeStatus | None, news: RuntimeStatus, expected: list[str]) -> None:
    assert names_of(updated(known, news)) == expected


class Pod:
    """Stands in for the client of one pod: answers polls from a queue, and notes what is pushed."""

    def __init__(self) -> None:
        self.answers: asyncio.Queue[RuntimeStatus | Exception | None] = asyncio.Queue()
        self.polls: list[tuple[str, int]] = []
        self.waits: list[int] = []
        self.pushed: list[int] = []
        self.refuse: list[Exception] = []
        self.gate = asyncio.Event()
        self.gate.set()
        self.resolutions: list[Resolution | Exception] = []

    async def status(self, _: PodAddress, boot: str, since: int, wait: int = 25) -> RuntimeStatus | None:
        self.polls.append((boot, since))
        self.waits.append(wait)
        answer = await self.answers.get()
        if isinstance(answer, Exception):
            raise answer
        return answer

    async def push(self, _: PodAddress, adapter_set: AdapterSet) -> Accepted:
        self.pushed.append(adapter_set.generation)
        await self.gate.wait()
        if self.refuse:
            raise self.refuse.pop(0)
        return Accepted(boot_id="first", adapter_set=AdapterSetVersion(generation=adapter_set.generation))

    async def resolve(self, _: PodAddress, request: ResolveRequest) -> Resolution:
        answer = self.resolutions.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer


HURRIED = FollowerLimits(backoff=Backoff(first_seconds=0.001, longest_seconds=0.001))


@pytest.fixture
async def pod() -> Pod:
    return Pod()


@pytest.fixture
async def follower(pod: Pod) -> AsyncIterator[PodFollower]:
    found = PodFollower(cast(RuntimeClient, pod), POD, lambda: None, HURRIED)
    yield found
    await asyncio.gather(*found.stop(), return_exceptions=True)


async def test_a_pod_that_is_not_ready_any_more_is_asked_at_once_and_forgotten_unless_it_answers(
    pod: Pod, follower: PodFollower
) -> None:
    follower.see(ready=False, version="")
    pod.answers.put_nowait(status("a", sequence=5))
    await until(lambda: pod.waits == [25, 25])
    follower.see(ready=True, version="")
    follower.see(ready=True, version="")
    follower.see(ready=False, version="")
    await until(lambda: pod.waits == [25, 25, 0])
    pod.answers.put_nowait(None)
    await until(lambda: pod.waits == [25, 25, 0, 25])
    assert names_of(follower.report.status) == ["a"], "it has answered"
    follower.see(ready=True, version="")
    follower.see(ready=False, version="")
    await until(lambda: len(pod.waits) == 5)
    pod.answers.put_nowait(RuntimeUnreachableError("it hangs"))
    await until(lambda: follower.report.status is None)
    assert follower.report.unreachable == "it hangs"
    pod.answers.put_nowait(status("a", sequence=9))
    await until(lambda: follower.report.status is not None)
    assert pod.polls[-2] == ("", 0), "all of it is asked for again"


async def test_polls_go_on_from_what_is_known(pod: Pod, follower: PodFollower) -> None:
    pod.answers.put_nowait(status("a", sequence=5))
    pod.answers.put_nowait(None)
    await until(lambda: len(pod.polls) == 3)
    assert pod.polls == [("", 0), ("first", 5), ("first", 5)]
    assert names_of(follower.report.status) == ["a"]


async def test_a_pod_that_is_gone_is_forgotten_at_once(pod: Pod, follower: PodFollower) -> None:
    pod.answers.put_nowait(status("a"))
    pod.answers.put_nowait(RuntimeUnreachableError("nobody listens", refused=True))
    await until(lambda: follower.report.unreachable is not None)
    assert follower.report.status is None


async def test_a_pod_of_another_version_is_told_with_its_fault_and_asked_again(
    pod: Pod, follower: PodFollower, caplog: pytest.LogCaptureFixture
) -> None:
    error = GraftError(ErrorCode.UNSUPPORTED_CONTRACT_VERSION, "of version 2, expected version 1", hint="one release")
    pod.answers.put_nowait(status("a"))
    pod.answers.put_nowait(OtherVersionError(error))
    pod.answers.put_nowait(OtherVersionError(error))
    await until(lambda: len(pod.polls) == 4)
    assert follower.report == PodReport(asked=True, unreachable=error.message, fault=Fault.of(error))
    assert [record.getMessage() for record in caplog.records] == [f"pod {POD.ip}: {error.message}"]
    pod.answers.put_nowait(status("a", boot="second"))
    await until(lambda: follower.report.status is not None)
    assert follower.report.fault is None


async def test_one_missed_poll_forgets_nothing_and_many_do(pod: Pod, follower: PodFollower) -> None:
    pod.answers.put_nowait(status("a"))
    pod.answers.put_nowait(RuntimeUnreachableError("too slow"))
    await until(lambda: follower.report.unreachable is not None)
    assert names_of(follower.report.status) == ["a"]
    for _ in range(HURRIED.failures_to_forget):
        pod.answers.put_nowait(RuntimeUnreachableError("too slow"))
    await until(lambda: follower.report.status is None)
    pod.answers.put_nowait(status("a", boot="second"))
    await until(lambda: follower.report.status is not None)
    assert follower.report.unreachable is None


async def test_a_pod_that_never_answers_counts_as_asked_later(pod: Pod) -> None:
    silent = PodFollower(cast(RuntimeClient, pod), POD, lambda: None, FollowerLimits(first_answer_seconds=0.005))
    await until(lambda: silent.report.asked)
    assert silent.report.status is None
    await asyncio.gather(*silent.stop(), return_exceptions=True)


async def test_a_pod_whose_object_changed_is_asked_now_instead_of_after_the_back_off(pod: Pod) -> None:
    never = FollowerLimits(backoff=Backoff(first_seconds=60, longest_seconds=60))
    patient = PodFollower(cast(RuntimeClient, pod), POD, lambda: None, never)
    patient.see(ready=False, version="1")
    pod.answers.put_nowait(RuntimeUnreachableError("nobody listens", refused=True))
    await until(lambda: patient.report.asked)
    patient.see(ready=False, version="1")
    await asyncio.sleep(0.01)
    assert len(pod.polls) == 1
    patient.see(ready=False, version="2")
    await until(lambda: len(pod.polls) == 2)
    await asyncio.gather(*patient.stop(), return_exceptions=True)


async def test_one_push_in_flight_and_the_latest_wins(pod: Pod, follower: PodFollower) -> None:
    pod.answers.put_nowait(status())
    await until(lambda: follower.report.status is not None)
    pod.gate.clear()
    follower.push(set_of(2))
    await until(lambda: pod.pushed == [2])
    follower.push(set_of(3))
    follower.push(set_of(4))
    follower.push(set_of(4))
    pod.gate.set()
    await until(lambda: follower.report.status is not None and follower.report.status.adapter_set.generation == 4)
    assert pod.pushed == [2, 4]


async def test_a_push_that_did_not_arrive_is_tried_again(pod: Pod, follower: PodFollower) -> None:
    pod.refuse = [RuntimeUnreachableError("too slow"), RuntimeUnreachableError("too slow")]
    follower.push(set_of(2))
    await until(lambda: pod.pushed == [2, 2, 2])


async def test_a_push_that_was_refused_is_left_to_the_next_pass(pod: Pod) -> None:
    marks: list[None] = []
    found = PodFollower(cast(RuntimeClient, pod), POD, lambda: marks.append(None), HURRIED)
    pod.refuse = [RuntimeRefusedError(409, "a newer one is in force")]
    found.push(set_of(2))
    await until(lambda: bool(marks))
    await asyncio.sleep(0.01)
    assert pod.pushed == [2]
    await asyncio.gather(*found.stop(), return_exceptions=True)


async def test_a_question_is_asked_until_there_is_an_answer(pod: Pod) -> None:
    marks: list[PoolKey] = []
    source = Source(uri="pvc://shelf/a")
    asked = Resolutions(cast(RuntimeClient, pod), marks.append, clock=lambda: 1000.0, again_seconds=0)
    pod.resolutions = [Resolution(), Resolution(), Resolution(digest="sha256:" + "a" * 64)]
    asked.ask(KEY, source, [POD])
    asked.ask(KEY, source, [POD])
    await until(lambda: marks == [KEY])
    assert asked.known(KEY)[source].digest == "sha256:" + "a" * 64
    asked.keep(KEY, ())
    assert asked.known(KEY) == {}
    await asked.close()


async def test_faults_are_asked_again_later_and_later(pod: Pod) -> None:
    marks: list[PoolKey] = []
    source = Source(uri="pvc://shelf/a")
    asked = Resolutions(cast(RuntimeClient, pod), marks.append, clock=lambda: 1000.0, again_seconds=0)
    fault = Resolution(fault=Fault(code=ErrorCode.NOT_FOUND, message="nothing there"))
    pod.resolutions = [fault, fault, RuntimeUnreachableError("gone")]
    waits = []
    for count in (1, 2):
        asked.ask(KEY, source, [POD])
        await until(lambda: len(marks) == count)  # noqa: B023 - awaited in this turn
        waits.append(asked.known(KEY)[source].retry_at)
    assert waits == [1004.0, 1008.0]
    asked.ask(KEY, source, [POD])
    await until(lambda: len(marks) == 3)
    found = asked.known(KEY)[source].fault
    assert found is not None, "a pod that could not be asked takes no answer back"
    assert found.code is ErrorCode.NOT_FOUND
    await asked.close()


class Pods:
    """Stands in for the client of several pods: what each answers, by its address; nothing: it hangs."""

    def __init__(self, **answers: Resolution | Exception) -> None:
        self.answers = answers
        self.asked: list[str] = []

    async def resolve(self, pod: PodAddress, request: ResolveRequest) -> Resolution:
        self.asked.append(pod.uid)
        answer = self.answers.get(pod.uid)
        if answer is None:
            await asyncio.Event().wait()
        if isinstance(answer, Exception):
            raise answer
        assert answer is not None
        return answer


FOUND = Resolution(digest="sha256:" + "a" * 64)
HUNG_FIRST = [PodAddress(uid, "10.0.0.1") for uid in ("hung", "well", "idle")]


@pytest.mark.parametrize(
    ("answers", "asked"),
    [
        pytest.param({"hung": FOUND}, ["hung"], id="the-first-answers"),
        pytest.param({"well": FOUND}, ["hung", "well"], id="the-first-hangs"),
        pytest.param({"hung": RuntimeUnreachableError("no"), "well": FOUND}, ["hung", "well"], id="the-first-is-gone"),
        pytest.param({"idle": FOUND}, ["hung", "well", "idle"], id="two-hang"),
    ],
)
async def test_a_pod_that_hangs_delays_no_answer(answers: dict[str, Resolution | Exception], asked: list[str]) -> None:
    marks: list[PoolKey] = []
    pods, source = Pods(**answers), Source(uri="pvc://shelf/a")
    found = Resolutions(cast(RuntimeClient, pods), marks.append, patience_seconds=0.01)
    found.ask(KEY, source, HUNG_FIRST)
    await until(lambda: marks == [KEY])
    assert found.known(KEY)[source].digest == FOUND.digest
    assert pods.asked == asked
    await found.close()


async def test_where_no_pod_answers_the_source_is_asked_about_again_soon() -> None:
    marks: list[PoolKey] = []
    gone, source = RuntimeUnreachableError("no"), Source(uri="pvc://shelf/a")
    pods = Pods(hung=gone, well=gone, idle=gone)
    found = Resolutions(cast(RuntimeClient, pods), marks.append, clock=lambda: 1000.0, patience_seconds=0.01)
    found.ask(KEY, source, HUNG_FIRST)
    await until(lambda: marks == [KEY])
    assert found.known(KEY)[source].retry_at == 1001.0
    assert pods.asked == ["hung", "well", "idle"]
    await found.close()


def test_of_a_pod_that_names_adapters_without_end_some_are_remembered() -> None:
    known = None
    for turn in range(3):
        known = updated(known, status(*(f"lie-{turn}-{number}" for number in range(MAX_REPORTS))))
    assert known is not None
    assert len(known.adapters) == MAX_REPORTS


async def test_a_namespace_whose_pods_report_too_much_is_not_believed_and_others_are(pod: Pod) -> None:
    room = Room(10_000)
    liar = PodFollower(cast(RuntimeClient, pod), PodAddress("liar", "10.0.0.1", "bad"), lambda: None, HURRIED, room)
    pod.answers.put_nowait(status(*(f"lie-{number}" for number in range(500))))
    await until(lambda: liar.report.asked)
    assert liar.report.status is None
    assert liar.report.unreachable is not None
    other = Pod()
    honest = PodFollower(
        cast(RuntimeClient, other), PodAddress("good", "10.0.0.2", "good"), lambda: None, HURRIED, room
    )
    other.answers.put_nowait(status("a"))
    await until(lambda: honest.report.status is not None)
    await asyncio.gather(*liar.stop(), *honest.stop(), return_exceptions=True)
    assert room.take("bad", 10_000)
    assert room.take("good", 10_000), "what a pod took is given back with it"
