"""Files from strangers, by the thousand: a typed error or an adapter, never a crash, a hang, or another's answer.

Cases start from a valid adapter and change fields of its config, entries and bytes of its weights. Most end at the
header; what survives is compiled, and what survives that is mounted beside an adapter that must not notice.
"""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.errors import GraftError
from graft_runtime.messages import Generate, Mounted, MountFailed, Sampling, ServedAdapter, Unmount, Unmounted
from hypothesis import given, settings

from tests.support import cases
from tests.support.fuzz import (
    CASES,
    COMPILED,
    LAYOUT,
    MAX_RANK,
    MOUNTED,
    PROMPT,
    SEEDS,
    Case,
    answers,
    case_of,
    generated,
    survivor,
    thorough,
    write,
)


@settings(thorough, max_examples=CASES)
@given(seed=SEEDS)
def test_files_give_a_typed_error_or_an_adapter_that_fits(fuzzed: Path, outcomes: Counter[bool], seed: int) -> None:
    cases.tried("files of adapters")
    write(fuzzed, Case(), random.Random(seed))
    outcomes[survivor(fuzzed) is not None] += 1


class _Module:
    quantised = False

    def __init__(self, rows: int, features: int) -> None:
        generator = torch.Generator().manual_seed(rows)
        self.weight = torch.randn(rows, features, generator=generator)
        self.bias = None


MODULES = {path: _Module(shape.output_features, shape.input_features) for path, shape in LAYOUT.linear.items()}
MODULES |= {path: _Module(shape.rows, shape.features) for path, shape in LAYOUT.embeddings.items()}


@settings(thorough, max_examples=COMPILED)
@given(seed=SEEDS)
def test_what_compiles_can_be_computed_with(fuzzed: Path, outcomes: Counter[bool], seed: int) -> None:
    cases.tried("compiled adapters")
    write(fuzzed, Case(), random.Random(seed))
    before = {path: module.weight.clone() for path, module in MODULES.items()}
    try:
        files = read_adapter_files(fuzzed, name="x", max_rank=MAX_RANK)
        adapter = compile_adapter(files, LAYOUT, MODULES.__getitem__, dtype=torch.float32, device=torch.device("cpu"))
    except GraftError:
        outcomes[False] += 1
    else:
        outcomes[True] += 1
        assert all(bool(torch.isfinite(tensor).all()) for delta in adapter.modules.values() for tensor in delta.tensors)
        assert any(delta.changes for delta in adapter.modules.values())
    assert all(torch.equal(before[path], module.weight) for path, module in MODULES.items())


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture
def outcomes() -> Any:
    """How many cases ended in an adapter, and how many in an error: a fuzz that never gets through shows nothing."""
    counted: Counter[bool] = Counter()
    yield counted
    assert min(counted[True], counted[False]) > sum(counted.values()) // 20, counted


# beside a good adapter


def test_a_good_adapter_notices_nothing_of_bad_ones(
    in_process: Any, tiny_base: Path, make_adapter: Any, tmp_path: Path
) -> None:
    engine = in_process(tiny_base, max_mounted_adapters=2)
    good, victim = make_adapter("good", r=4), make_adapter("victim", r=4)
    assert isinstance(engine.mount("good", good), Mounted)
    before = answers(engine)
    told: Counter[type] = Counter()

    @settings(thorough, max_examples=MOUNTED)
    @given(seed=SEEDS)
    def beside(seed: int) -> None:
        cases.tried("mounted adapters")
        write(tmp_path, case_of(victim), random.Random(seed))
        event = engine.mount("bad", tmp_path)
        told[type(event)] += 1
        if isinstance(event, Mounted):
            submit = Generate("bad", PROMPT, 4, (ServedAdapter("bad", 1.0),), Sampling(temperature=0.0))
            engine.handle(submit)
        else:
            assert isinstance(event, MountFailed)
            assert event.fault.error().what
        greedy = Sampling(temperature=0.0)
        engine.handle(Generate("base", PROMPT, 6, (), greedy))
        engine.handle(Generate("good", PROMPT, 6, (ServedAdapter("good", 1.0),), greedy))
        assert generated(engine, ("base", "good")) == before, "in one batch with it"
        if isinstance(event, Mounted):
            engine.handle(Unmount("bad"))
            assert engine.step() == [Unmounted("bad")]
        assert answers(engine) == before, "after it has gone"

    beside()
    assert min(told[Mounted], told[MountFailed]) > MOUNTED // 20, told
