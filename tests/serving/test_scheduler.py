"""The queue before every runner, on a flow that computes nothing."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from graft_runtime.engine.requests import NEVER, Encoding, Request, Result, first_position
from graft_runtime.engine.scheduler import PATIENT_STEPS, Scheduler
from graft_runtime.engine.turns import Turns
from graft_runtime.engine.ways import who_gives_room
from graft_runtime.messages import Encode, Generate, ServedAdapter


def request(name: str) -> Request:
    return Encoding(message=Encode(name, [1]), adapters=())


@dataclass
class TakesAll:
    """A turn of all requests that run."""

    requests: Sequence[Request]

    def run(self) -> list[Result]:
        raise AssertionError("the scheduler runs nothing")

    def settle(self, ended: Sequence[Request]) -> None:
        raise AssertionError("the scheduler settles nothing")


@dataclass
class Places:
    """A flow with so many places."""

    places: int
    requests: list[Request] = field(default_factory=list)
    pushed: int = 0
    """How many of the youngest must leave before the next step."""
    reserved: int = 0

    def make_room(self) -> list[Request]:
        leaving = self.requests[len(self.requests) - self.pushed :]
        for one in leaving:
            self.leave(one)
        self.places, self.pushed = self.places - self.pushed, 0
        return leaving

    def start(self, waiting: Sequence[Request]) -> Sequence[Request]:
        started = waiting[: self.places - len(self.requests)]
        self.requests += started
        return started

    def turns(self) -> list[TakesAll]:
        return [TakesAll(list(self.requests))] if self.requests else []

    def leave(self, request: Request) -> None:
        self.requests.remove(request)


def names(requests: Sequence[Request]) -> str:
    return "".join(request.name for request in requests)


def scheduler(places: int, *waiting: str) -> Scheduler:
    made = Scheduler(Places(places))
    for name in waiting:
        made.add(request(name))
    return made


def test_first_come_first_served() -> None:
    queue = scheduler(2, "a", "b", "c", "d")
    (turn,) = queue.schedule()
    assert (names(turn.requests), queue.running, queue.waiting) == ("ab", 2, 2)
    queue.flow.leave(turn.requests[0])
    (turn,) = queue.schedule()
    assert names(turn.requests) == "bc"


def test_those_that_are_pushed_back_start_again_before_the_others_in_their_order() -> None:
    queue = scheduler(4, *"abcdef")
    queue.schedule()
    flow = queue.flow
    assert isinstance(flow, Places)
    flow.pushed = 2
    (turn,) = queue.schedule()
    assert (names(turn.requests), queue.waiting) == ("ab", 4)
    flow.places = 5
    (turn,) = queue.schedule()
    assert names(turn.requests) == "abcde"


def test_a_turn_that_failed_runs_again_request_by_request_before_any_other() -> None:
    queue = scheduler(3, *"abcd")
    (turn,) = queue.schedule()
    queue.again(turn)
    assert (queue.running, queue.waiting) == (0, 4)
    (turn,) = queue.schedule()
    assert names(turn.requests) == "abc"
    assert all(one.alone for one in turn.requests)


def test_what_can_never_start_is_taken_out_when_nothing_runs() -> None:
    queue = scheduler(1, "a", "b")
    queue.schedule()
    assert queue.stuck() is None, "what runs may make room"
    queue.flow.leave(queue.flow.requests[0])
    assert isinstance(queue.flow, Places)
    queue.flow.places = 0
    assert queue.schedule() == []
    stuck = queue.stuck()
    assert stuck is not None
    assert (stuck.name, queue.busy, queue.stuck()) == ("b", False, None)


def test_a_request_is_dropped_whether_it_waits_or_runs() -> None:
    queue = scheduler(1, "a", "b", "c")
    queue.schedule()
    for name, left in (("b", "ac"), ("a", "c"), ("none", "c")):
        dropped = queue.drop(name)
        assert (dropped.name if dropped else "none") == name
        assert queue.running + queue.waiting == len(left)
    (turn,) = queue.schedule()
    assert names(turn.requests) == "c"


def test_an_adapter_takes_part_from_the_last_place_of_its_invocation_on() -> None:
    assert first_position([1, 2, 3], []) == 0
    assert first_position([7, 8, 1, 7, 8, 2], [7, 8]) == 3
    assert first_position([7, 1], [7, 8]) > 1 << 40


def test_the_invocation_is_found_where_a_plain_search_finds_it() -> None:
    draw = random.Random(7)
    for _ in range(2000):
        prompt = [draw.randrange(2) for _ in range(draw.randrange(30))]
        invocation = [draw.randrange(2) for _ in range(1 + draw.randrange(6))]
        places = [at for at in range(len(prompt)) if prompt[at : at + len(invocation)] == invocation]
        assert first_position(prompt, invocation) == max(places, default=NEVER)


def test_a_prompt_of_near_invocations_costs_no_more_than_any_other() -> None:
    compared = 0

    class Token(int):
        def __eq__(self, other: object) -> bool:
            nonlocal compared
            compared += 1
            return int(self) == int(str(other))

        def __ne__(self, other: object) -> bool:
            return not self == other

        __hash__ = int.__hash__

    prompt = [Token(1)] * 10_000
    for invocation in ([Token(2), *[Token(1)] * 255], [*[Token(1)] * 255, Token(2)]):
        assert first_position(prompt, invocation) == NEVER
    assert compared < 10 * len(prompt)


def of(adapter: str, number: int, tokens: int = 10) -> Request:
    message = Encode(f"{adapter}{number}", [1] * tokens, (ServedAdapter(adapter, 1.0),))
    return Encoding(message=message, adapters=())


def started(queue: Scheduler, count: int) -> list[str]:
    """Return the names of the requests that start, one place at a time."""
    order = []
    for _ in range(count):
        (turn,) = queue.schedule()
        order.append(turn.requests[0].name)
        queue.flow.leave(turn.requests[0])
    return order


def test_who_asks_often_waits_behind_himself_alone() -> None:
    queue = Scheduler(Places(1))
    for number in range(6):
        queue.add(of("a", number))
    queue.add(of("b", 0))
    queue.add(of("b", 1))
    assert started(queue, 8) == ["a0", "b0", "a1", "b1", "a2", "a3", "a4", "a5"]


def running(queue: Scheduler) -> list[str]:
    """Return the names of the requests that run, once those who wait have been patient."""
    for _ in range(PATIENT_STEPS + 1):
        queue.schedule()
    return [one.name for one in queue.flow.requests]


def test_who_runs_most_makes_way_for_who_runs_nothing() -> None:
    queue = Scheduler(Places(3))
    for number in range(5):
        queue.add(of("a", number))
    assert running(queue) == ["a0", "a1", "a2"], "for itself nobody makes way"
    queue.add(of("b", 0))
    assert running(queue) == ["a0", "a1", "b0"], "the youngest leaves"
    queue.add(of("b", 1))
    queue.add(of("c", 0))
    assert running(queue) == ["a0", "b0", "c0"]
    for _ in range(9):
        assert running(queue) == ["a0", "b0", "c0"], "those who run as much as others keep their places"
    queue.flow.leave(queue.flow.requests[1])
    assert running(queue) == ["a0", "c0", "b1"]
    queue.flow.leave(queue.flow.requests[2])
    assert running(queue) == ["a0", "c0", "a1"], "the first to have left goes on before those that have not begun"


def test_more_make_way_for_a_larger_share() -> None:
    def one(adapter: str, number: int, share: int = 1) -> Request:
        message = Generate(f"{adapter}{number}", [1], 1, (ServedAdapter(adapter, 1.0),), share=share)
        return Request(message=message, adapters=())

    queue = Scheduler(Places(4))
    for request in [one("a", number) for number in range(6)] + [one("b", number, share=3) for number in range(6)]:
        queue.add(request)
    for _ in range(9):
        names = running(queue)
    assert Counter(name[0] for name in names) == {"b": 3, "a": 1}


def test_the_youngest_of_the_adapters_that_hold_most_gives_room() -> None:
    def one(adapter: str, number: int, share: int = 1) -> Request:
        message = Generate(f"{adapter}{number}", [1], 1, (ServedAdapter(adapter, 1.0),), share=share)
        return Request(message=message, adapters=())

    def leaves(*running: tuple[Request, int]) -> str:
        return who_gives_room(running).name

    assert leaves((one("a", 0), 512), (one("a", 1), 256), (one("b", 0), 256)) == "a1", "and not the youngest of all"
    assert leaves((one("b", 0), 256), (one("a", 0), 256), (one("a", 1), 256)) == "a1"
    assert leaves((one("b", 0), 512), (one("a", 0), 256), (one("a", 1), 512)) == "a1"
    assert leaves((one("a", 0), 256), (one("b", 0), 256)) == "b0", "of those that hold as much, the youngest"
    assert leaves((one("a", 0), 4096), (one("b", 0), 256)) == "b0", "the oldest goes on"
    assert leaves((one("a", 0), 4096)) == "a0", "but for the room that it has no more alone"
    assert leaves((one("a", 0), 256), (one("a", 1, share=4), 512), (one("b", 0), 512)) == "b0", "by their shares"


def test_what_counts_is_tokens() -> None:
    queue = Scheduler(Places(1))
    for number in range(3):
        queue.add(of("long", number, 40))
    for number in range(6):
        queue.add(of("short", number, 10))
    assert started(queue, 7) == ["long0", "short0", "short1", "short2", "short3", "long1", "short4"]


def test_tokens_of_a_larger_share_count_less() -> None:
    turns = Turns()
    assert [turns.of("one", 10) for _ in range(3)] == [0, 10, 20]
    assert [turns.of("four", 10, 4) for _ in range(3)] == [0, 3, 6]


def test_who_did_not_ask_has_saved_nothing_up() -> None:
    queue = Scheduler(Places(1))
    for number in range(6):
        queue.add(of("a", number))
    assert started(queue, 4) == ["a0", "a1", "a2", "a3"]
    for number in range(3):
        queue.add(of("late", number))
    assert started(queue, 5) == ["late0", "a4", "late1", "a5", "late2"]
