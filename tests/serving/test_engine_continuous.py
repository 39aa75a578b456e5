"""Continuous batching: requests come, wait, grow, go and are pushed back while others decode, and no answer changes."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.engine.budgets import Budgets
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import Cancel, Generate, Generated, Sampling, ServedAdapter
from graft_runtime.runners.decoder.attention import LayerShape
from graft_runtime.runners.decoder.extents import SMALLEST_EXTENT, Extents

GREEDY = Sampling(temperature=0)
LONG = [256, *[(index * 37 + 11) % 256 for index in range(150)]]
SHORT = [256, 10, 20, 30]


def ask(name: str, prompt: list[int], *adapters: str, tokens: int = 8) -> Generate:
    return Generate(name, prompt, tokens, tuple(ServedAdapter(adapter, 1.0) for adapter in adapters), GREEDY)


def flow_of(engine: Any) -> Any:
    return engine.engine.serving.scheduler.flow


def said(events: list[Any]) -> set[str]:
    return {event.request for event in events if isinstance(event, Generated) and event.tokens}


@pytest.fixture(scope="module")
def adapters(make_adapter: Any) -> dict[str, Path]:
    return {name: make_adapter(name) for name in "abc"}


@pytest.fixture
def start(in_process: Any, tiny_base: Path, adapters: dict[str, Path]) -> Callable[..., Any]:
    """`start(**budgets)`: an engine with the adapters mounted."""

    def start(**budgets: Any) -> Any:
        engine = in_process(tiny_base, Budgets(**budgets), max_rank=4)
        assert engine.started[0].runner == "decoder"
        for name, directory in adapters.items():
            engine.mount(name, directory)
        return engine

    return start


@pytest.fixture
def engine(start: Any) -> Any:
    return start()


def alone(engine: Any, *submits: Generate) -> dict[str, list[int]]:
    answers: dict[str, list[int]] = {}
    for submit in submits:
        answers |= engine.answers([submit])
    return answers


def test_a_short_request_starts_while_a_long_prompt_is_on_its_way(start: Any) -> None:
    engine = start(prompt_tokens=16)  # the long prompt takes ten steps and more
    submits = [ask("decodes", SHORT, "a", tokens=40), ask("long", LONG, "b"), ask("short", SHORT, "c")]
    expected = alone(start(), *submits)  # which keeps the prompts
    engine.handle(submits[0])
    events = engine.step()
    engine.handle(submits[1])
    events += engine.step()
    engine.handle(submits[2])
    soon = [engine.step(), engine.step()]
    assert all("decodes" in said(step) for step in soon), "those that decode never wait"
    assert "short" in said(soon[0] + soon[1])
    assert "long" not in said(soon[0] + soon[1])
    assert engine.collect(events + soon[0] + soon[1]) == expected


def test_a_long_prompt_gets_on_while_short_ones_keep_coming(start: Any) -> None:
    engine = start(prompt_tokens=16)
    engine.handle(ask("long", LONG))
    steps = 0
    while "long" not in said(engine.step()):
        for index in range(4):
            engine.handle(ask(f"{steps}-{index}", SHORT, tokens=1))
        steps += 1
        assert steps < 20, "half of each step is the oldest prompt's"


def test_cancelling_frees_keys_and_values_at_once(engine: Any) -> None:
    expected = alone(engine, ask("stays", SHORT, "a", tokens=20))
    for command in (ask("goes", LONG, "b", tokens=50), ask("stays", SHORT, "a", tokens=20)):
        engine.handle(command)
    events = engine.step()
    runner = flow_of(engine).runner
    assert (runner.kv.extents, runner.bank.active) == (2, 2)
    engine.handle(Cancel("goes"))
    assert (runner.kv.extents, runner.bank.active) == (1, 1)
    assert runner.kv.held <= 2 * SMALLEST_EXTENT
    assert engine.collect(events)["stays"] == expected["stays"]
    assert (runner.kv.extents, runner.kv.held, runner.bank.active) == (0, 0, 0)


def test_memory_for_two_serves_many(engine: Any) -> None:
    """Sequences outgrow what there is: the youngest are pushed back and start again from where they were."""
    submits = [ask(str(index), SHORT + [index] * 9 * index, "abc"[index % 3], tokens=100) for index in range(6)]
    expected = alone(engine, *submits)
    flow, held = flow_of(engine), []
    flow.runner.kv.tokens = 2 * 256
    pushed_back = 0
    leave = flow.leave

    def count(request: Any) -> None:
        nonlocal pushed_back
        pushed_back += len(request.tokens) < request.max_tokens
        leave(request)

    flow.leave = count
    for submit in submits:
        engine.handle(submit)
    events = []
    while engine.engine.busy:
        events += engine.step()
        held.append(flow.runner.kv.held)
    assert max(held) <= 2 * 256
    assert pushed_back > 0
    assert engine.collect(events) == expected


def test_who_holds_most_leaves_where_memory_ends(engine: Any) -> None:
    first = [ask(f"a{index}", [*LONG, index], "a", tokens=150) for index in range(3)]
    last = ask("b", SHORT, "b", tokens=70)
    expected = alone(engine, *first, last)
    flow, left = flow_of(engine), list[str]()
    flow.runner.kv.tokens = 3 * 256 + SMALLEST_EXTENT
    leave = flow.leave

    def note(request: Any) -> None:
        if len(request.tokens) < request.max_tokens:
            left.append(request.name)
        leave(request)

    flow.leave = note
    for submit in (*first, last):
        engine.handle(submit)
    assert engine.collect([]) == expected
    assert left
    assert "b" not in left, "it holds a fifth of what the other adapter's requests do"


def test_a_short_answer_waits_for_no_long_ones_of_another_adapter(engine: Any) -> None:
    submits = [ask(f"long{index}", [*SHORT, index], "a", tokens=100) for index in range(4)] + [ask("short", SHORT, "b")]
    expected = alone(engine, *submits)
    flow_of(engine)._max_sequences = 2
    for submit in submits[:-1]:
        engine.handle(submit)
    events = engine.step()
    engine.handle(submits[-1])
    while "short" not in said(events):
        events += engine.step()
    assert not any(event.finish for event in events if isinstance(event, Generated)), "the long ones are on their way"
    assert engine.collect(events) == expected, "and go on from where they were"


def test_what_does_not_fit_into_the_bank_waits(engine: Any, start: Any) -> None:
    submits = [ask(str(index), SHORT, "abc"[index % 3], tokens=10) for index in range(6)]
    expected = alone(engine, *submits)
    engine = start(bank_columns=8)  # two adapters of rank 4
    bank = flow_of(engine).runner.bank
    for submit in submits:
        engine.handle(submit)
    events, most = [], 0
    while engine.engine.busy:
        events += engine.step()
        most = max(most, bank.active)
    assert most == 2
    assert engine.collect(events) == expected


def test_what_never_fits_is_refused(start: Any) -> None:
    engine = start(bank_columns=8)
    flow_of(engine).runner.kv.tokens = 100  # as if the memory had gone elsewhere
    submits = [ask("wide", SHORT, "a", "b", "c"), ask("runs", SHORT, "a"), ask("long", LONG, "a"), ask("after", SHORT)]
    for submit in submits:
        engine.handle(submit)
    ends: dict[str, Any] = {}
    while engine.engine.busy:
        ends |= {event.request: event for event in engine.step() if isinstance(event, Generated) and event.finish}
    faults = {name: event.fault.code for name, event in ends.items() if event.fault}
    assert faults == {"wide": ErrorCode.NOT_COMPOSABLE, "long": ErrorCode.NO_CAPACITY}


def test_columns_are_zeroed_when_they_are_released(engine: Any) -> None:
    bank = flow_of(engine).runner.bank
    engine.handle(ask("runs", SHORT, "a", tokens=3))
    engine.step()
    assert bank.width == 16
    assert any(module.columns[1].any() for module in bank.modules.values())
    engine.collect([])
    assert bank.width == 0
    assert not any(tensor.any() for module in bank.modules.values() for tensor in module.columns)


def test_a_step_of_the_base_alone_touches_no_adapter(engine: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from graft_runtime.model.hooks import AdapterModules

    def fail(*_: object) -> None:
        raise AssertionError("a hook was made")

    monkeypatch.setattr(AdapterModules, "_hooked", fail)
    assert len(engine.answers([ask("base", SHORT)])["base"]) == 8


# the store of keys and values


def store(tokens: int = 1024) -> Extents:
    layers = [LayerShape(1, 2, 3), LayerShape(2, 4, 4)]
    return Extents(layers, tokens=tokens, longest=300, dtype=torch.float32, device=torch.device("cpu"))


def everything(extent: Any) -> list[torch.Tensor]:
    return [tensor[extent.slot] for tensor in (*extent.slab.keys, *extent.slab.values)]


def test_an_extent_is_zeroed_when_it_is_reserved() -> None:
    kv = store()
    stays, goes = kv.reserve(10), kv.reserve(10)
    for tensor in everything(goes):
        tensor.fill_(float("nan"))
    slab = goes.slab  # type: ignore[union-attr]
    kv.release(goes)  # type: ignore[arg-type]
    again = kv.reserve(10)
    assert again is not None
    assert again.slab is slab, "the same memory"
    assert not any(tensor.any() for tensor in everything(again))
    assert stays is not None
    assert stays.slot != again.slot


@pytest.mark.parametrize("failing", [1, 3, 4])
def test_a_slab_that_finds_no_memory_to_grow_keeps_none_of_it(failing: int, monkeypatch: pytest.MonkeyPatch) -> None:
    kv = store()
    extents = [kv.reserve(10), kv.reserve(10)]
    slab = extents[0].slab  # type: ignore[union-attr]
    for index, extent in enumerate(extents):
        for tensor in everything(extent):
            tensor.fill_(index + 1)
    new_empty, calls = torch.Tensor.new_empty, iter(range(1, 100))

    def full(self: torch.Tensor, *shape: int) -> torch.Tensor:
        if next(calls) == failing:
            raise torch.OutOfMemoryError("out of memory")
        return new_empty(self, *shape)

    with monkeypatch.context() as patched:
        patched.setattr(torch.Tensor, "new_empty", full)
        assert kv.reserve(10) is None
    assert {tensor.shape[0] for tensor in (*slab.keys, *slab.values)} == {2}
    assert all((tensor == row + 1).all() for row, extent in enumerate(extents) for tensor in everything(extent))
    assert kv.reserve(10) is not None


def test_a_slab_that_finds_no_memory_to_move_stays_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    kv = store()
    extents = [kv.reserve(10) for _ in range(8)]
    assert kv.tokens == 1024

    def full(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr(torch.Tensor, "new_empty", full)
    for extent in extents[1:]:
        kv.release(extent)  # type: ignore[arg-type]
    assert kv.reserve(200) is None, "no more than before is free"
    assert (kv.held, kv.extents) == (8 * SMALLEST_EXTENT, 1)
    assert kv.tokens == 6 * SMALLEST_EXTENT, "less than there was, since steps need memory as well"


def test_extents_keep_their_contents_when_others_come_and_go() -> None:
    kv, extents = store(), {}
    for index in range(1, 9):
        extents[index] = kv.reserve(10)
        for tensor in everything(extents[index]):
            tensor.fill_(index)
    for index in (1, 8, 4, 5, 2):
        kv.release(extents.pop(index))  # type: ignore[arg-type]
        for other, extent in extents.items():
            assert all((tensor == other).all() for tensor in everything(extent))
            assert extent is not None
            assert extent.slot < len(extents)
    larger = kv.grow(extents[3], 100, used=7)  # type: ignore[arg-type]
    assert larger is not None
    assert larger.capacity == 128
    for tensor in everything(larger):
        assert (tensor[:, :7] == 3).all()
        assert not tensor[:, 7:].any()


def test_the_store_never_holds_more_than_it_may() -> None:
    kv = store(tokens=300)
    taken = [kv.reserve(10) for _ in range(4)]
    assert all(taken)
    assert kv.reserve(10) is None
    assert kv.held == 256
    kv.release(taken[0])  # type: ignore[arg-type]
    kv.release(taken[1])  # type: ignore[arg-type]
    larger = kv.reserve(100)
    assert larger is not None, "free slots of another size make room"
    assert kv.held <= 300
    assert kv.reserve(300) is None
