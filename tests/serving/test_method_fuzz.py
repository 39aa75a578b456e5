"""Files from strangers that start from every method that is served, as PEFT saves it: see `test_adapter_fuzz`."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.methods.registry import METHODS
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import Generate, Mounted, MountFailed, Sampling, ServedAdapter, Unmount
from graft_runtime.model.load import load_base
from graft_runtime.model.modules import BaseModules
from hypothesis import given, settings

from tests.support import cases
from tests.support.fuzz import (
    COMPILED,
    FIELDS,
    METHOD_CASES,
    MOUNTED,
    PROMPT,
    SEEDS,
    Case,
    answers,
    case_of,
    generated,
    some_json,
    survivor,
    thorough,
    write,
)
from tests.support.methods import METHODS as METHOD_OPTIONS
from tests.support.methods import STACKED, save_method, save_prompt

MAX_RANK = 64
THROUGH = 30
"""One case of so many, at least, must give an adapter."""
PLAIN: list[Any] = [None, True, False, 0, -1, 1, 2, 3, 5, 17, 0.5, 1e308, 1 << 70, "", [], {}]
LORA: dict[str, dict[str, Any]] = {
    "dora": {"use_dora": True, "target_modules": ["q_proj"]},
    "saved": {"modules_to_save": ["lm_head", "norm"], "target_modules": ["v_proj"]},
    "trained": {"trainable_token_indices": [5, 300, 2], "target_modules": ["q_proj"]},
    "embedded": {"target_modules": ["embed_tokens", "q_proj"]},
}


@dataclass(frozen=True)
class Start:
    """An adapter as PEFT saved it, and the base that it is for."""

    directory: Path
    config: dict[str, Any]
    model: torch.nn.Module
    layout: BaseLayout


@pytest.fixture(scope="module")
def starts(
    make_base: Callable[..., Path], make_adapter: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> list[Start]:
    directory = tmp_path_factory.mktemp("starts")
    tiny, mixture = make_base("llama"), make_base("gpt_oss")
    built = [
        save_method(tiny, directory / name, config, options, seed=seed)
        for seed, (name, (config, options)) in enumerate(METHOD_OPTIONS.items())
    ]
    built += [save_prompt(tiny, directory / name, name) for name in ("prompt", "p", "prefix")]
    built += [make_adapter(name, **options) for name, options in LORA.items()]
    stacked = [make_adapter(name, base=mixture, **STACKED[name]) for name in ("both", "bare")]
    found = []
    for path, adapters in ((tiny, built), (mixture, stacked)):
        base = load_base(path, name="tiny", dtype="float32", max_sequence_length=256)
        found += [Start(adapter, case_of(adapter).config, base.model, base.layout) for adapter in adapters]
    assert {start.config["peft_type"] for start in found} == set(METHODS)
    return found


@pytest.fixture(scope="module")
def fuzzed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzzed")


@pytest.fixture
def outcomes() -> Iterator[Counter[tuple[str, bool]]]:
    """How many cases of each start ended in an adapter, and in an error: each start is refused at times, and of all
    cases enough get through."""
    counted: Counter[tuple[str, bool]] = Counter()
    yield counted
    assert all(counted[name, False] for name in {name for name, _ in counted}), counted
    assert sum(counted[case] for case in counted if case[1]) > counted.total() // THROUGH, counted


def changed(directory: Path, start: Start, starts: list[Start], chance: random.Random) -> None:
    """One case on the disk: fields of the method's own changed, or with some, or all, of another method's config."""
    case: Case = case_of(start.directory)
    other = chance.choice(starts).config
    match chance.randrange(12):
        case 0:
            case.config = dict(other)
        case 1:
            case.config["peft_type"] = other["peft_type"]
        case 2 | 3:
            for name in chance.sample(sorted(other), 2):
                case.config[name] = other[name]
        case 4 | 5 | 6 | 7 | 8 | 9:
            own = sorted(case.config.keys() - set(FIELDS)) or sorted(case.config)
            case.config[chance.choice(own)] = chance.choice([chance.choice(PLAIN), some_json(chance)])
    write(directory, case, chance)


def test_what_the_cases_start_from_gets_through_unchanged(starts: list[Start]) -> None:
    assert [start.directory.name for start in starts if survivor(start.directory, start.layout, MAX_RANK) is None] == []


def test_files_of_every_method_give_a_typed_error_or_fit(
    fuzzed: Path, starts: list[Start], outcomes: Counter[tuple[str, bool]]
) -> None:
    @settings(thorough, max_examples=METHOD_CASES)
    @given(seed=SEEDS)  # alone: Hypothesis prints the arguments of a failure, and the starts are large
    def one(seed: int) -> None:
        cases.tried("files of other methods")
        chance = random.Random(seed)
        start = chance.choice(starts)
        changed(fuzzed, start, starts, chance)
        survived = survivor(fuzzed, start.layout, MAX_RANK)
        outcomes[start.directory.name, survived is not None] += 1

    one()


def test_what_compiles_of_every_method_is_finite(
    fuzzed: Path, starts: list[Start], outcomes: Counter[tuple[str, bool]]
) -> None:
    @settings(thorough, max_examples=COMPILED)
    @given(seed=SEEDS)  # alone: Hypothesis prints the arguments of a failure, and the starts are large
    def one(seed: int) -> None:
        cases.tried("compiled adapters")
        chance = random.Random(seed)
        start = chance.choice(starts)
        changed(fuzzed, start, starts, chance)
        before = [parameter._version for parameter in start.model.parameters()]
        try:
            files = read_adapter_files(fuzzed, name="x", max_rank=MAX_RANK)
            device = torch.device("cpu")
            adapter = compile_adapter(files, start.layout, BaseModules(start.model), dtype=torch.float32, device=device)
        except GraftError:
            outcomes[start.directory.name, False] += 1
        else:
            outcomes[start.directory.name, True] += 1
            assert all(
                bool(torch.isfinite(tensor).all()) for delta in adapter.modules.values() for tensor in delta.tensors
            )
        assert before == [parameter._version for parameter in start.model.parameters()], "nothing wrote into the base"

    one()


def test_a_good_adapter_notices_nothing_of_other_methods(
    in_process: Any, tiny_base: Path, make_adapter: Any, starts: list[Start], tmp_path: Path
) -> None:
    engine = in_process(tiny_base, max_mounted_adapters=2, max_rank=MAX_RANK)
    assert isinstance(engine.mount("good", make_adapter("good", r=4)), Mounted)
    before = answers(engine)
    own = [start for start in starts if start.layout is starts[0].layout]
    told: Counter[type] = Counter()

    @settings(thorough, max_examples=MOUNTED)
    @given(seed=SEEDS)
    def beside(seed: int) -> None:
        cases.tried("mounted adapters")
        chance = random.Random(seed)
        changed(tmp_path, chance.choice(own), starts, chance)
        event = engine.mount("bad", tmp_path)
        told[type(event)] += 1
        greedy = Sampling(temperature=0.0)
        if isinstance(event, Mounted):
            engine.handle(Generate("bad", PROMPT, 4, (ServedAdapter("bad", 1.0),), greedy))
        else:
            assert isinstance(event, MountFailed)
            assert event.fault.code != ErrorCode.INTERNAL, event.fault
        engine.handle(Generate("base", PROMPT, 6, (), greedy))
        engine.handle(Generate("good", PROMPT, 6, (ServedAdapter("good", 1.0),), greedy))
        assert generated(engine, ("base", "good")) == before, "in one batch with it"
        if isinstance(event, Mounted):
            engine.handle(Unmount("bad"))
            engine.step()
        assert answers(engine) == before, "after it has gone"

    beside()
    assert min(told[Mounted], told[MountFailed]) > MOUNTED // 20, told
