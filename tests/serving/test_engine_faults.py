"""What goes wrong stays with whom it belongs to: the engine answers everyone else as before."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.engine.budgets import Budgets
from graft_runtime.engine.engine import EngineBrokenError
from graft_runtime.engine.process import granted_processors
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import (
    BaseFailed,
    BaseLoaded,
    Cancel,
    Generate,
    Generated,
    Mount,
    Mounted,
    MountFailed,
    Occupancy,
    Sampling,
    ServedAdapter,
    StepDone,
    Unmount,
    Unmounted,
)
from graft_runtime.model.bank_module import BankModule
from safetensors.torch import load_file, save_file

GREEDY = Sampling(temperature=0)
PROMPT = [256, 10, 20, 30]


def ask(name: str, *adapters: str, tokens: int = 6, prompt: list[int] | None = None, **options: Any) -> Generate:
    served = tuple(ServedAdapter(adapter, 1.0) for adapter in adapters)
    return Generate(name, prompt or PROMPT, tokens, served, options.pop("sampling", GREEDY), **options)


def code_of(event: Generated) -> str:
    assert event.fault is not None
    return event.fault.code


def events_of(engine: Any, kind: type) -> list[Any]:
    """Steps until nothing is left to do; the events of this kind."""
    found = []
    while engine.engine.busy:
        found += [event for event in engine.step() if isinstance(event, kind)]
    return found


def ends(engine: Any) -> dict[str, Generated]:
    return {event.request: event for event in events_of(engine, Generated) if event.finish}


@pytest.fixture(scope="module")
def good(make_adapter: Any) -> Path:
    return make_adapter("good")  # type: ignore[no-any-return]


@pytest.fixture
def engine(in_process: Any, tiny_base: Path, good: Path) -> Any:
    engine = in_process(tiny_base)
    assert isinstance(engine.mount("good", good), Mounted)
    return engine


def edited(source: Path, target: Path, edit: Callable[[dict[str, torch.Tensor]], None]) -> Path:
    """A copy of an adapter with other tensors."""
    shutil.copytree(source, target)
    tensors = load_file(target / "adapter_model.safetensors")
    edit(tensors)
    save_file(tensors, target / "adapter_model.safetensors")
    return target


def _fill(value: float, ending: str) -> Callable[[dict[str, torch.Tensor]], None]:
    def edit(tensors: dict[str, torch.Tensor]) -> None:
        for name, tensor in tensors.items():
            if name.endswith(ending):
                tensor.fill_(value)

    return edit


def _drop_one(tensors: dict[str, torch.Tensor]) -> None:
    tensors.pop(min(tensors))


# adapters


def test_bad_adapters_leave_the_engine_serving(
    engine: Any, good: Path, make_adapter: Any, make_base: Any, tmp_path: Path
) -> None:
    before = engine.answers([ask("base"), ask("adapted", "good")])
    truncated = shutil.copytree(good, tmp_path / "truncated")
    with (truncated / "adapter_model.safetensors").open("r+b") as file:
        file.truncate(1000)
    pooled = shutil.copytree(good, tmp_path / "pooled")
    config = json.loads((pooled / "adapter_config.json").read_text())
    (pooled / "adapter_config.json").write_text(json.dumps(config | {"use_qalora": True}))
    bad = {
        tmp_path / "nowhere": ErrorCode.NOT_AN_ADAPTER,
        truncated: ErrorCode.CORRUPT,
        edited(good, tmp_path / "nan", _fill(float("nan"), "lora_A.weight")): ErrorCode.CORRUPT,
        edited(good, tmp_path / "zero", _fill(0.0, "lora_B.weight")): ErrorCode.NO_EFFECT,
        edited(good, tmp_path / "incomplete", _drop_one): ErrorCode.CORRUPT,
        make_adapter("wide", r=17): ErrorCode.RANK_TOO_HIGH,
        pooled: ErrorCode.UNSUPPORTED_METHOD,
        make_adapter("foreign", base=make_base("gpt2")): ErrorCode.BASE_MISMATCH,
    }
    for directory, code in bad.items():
        failed = engine.mount(f"sha256:{directory.name}", directory)
        assert isinstance(failed, MountFailed), directory
        assert failed.fault.code == code, failed.fault
        assert f"`sha256:{directory.name}`" in failed.fault.what
    assert engine.answers([ask("base"), ask("adapted", "good")]) == before
    (refused,) = ends_after(engine, ask("x", "sha256:nan"))
    assert code_of(refused) == ErrorCode.NOT_READY


def ends_after(engine: Any, *commands: Any) -> list[Generated]:
    for command in commands:
        engine.handle(command)
    return list(ends(engine).values())


def test_a_row_that_overflows_spoils_no_other(engine: Any) -> None:
    """What one row computes is not finite; rows of every kind run in the same batch, one longer than it."""
    long = [256, *range(40)]
    before = engine.answers([ask("base"), ask("adapted", "good"), ask("longer", "good", prompt=long)])
    engine.handle(Generate("spoilt", PROMPT, 6, (ServedAdapter("good", 1e30),), GREEDY))
    for command in (ask("base"), ask("adapted", "good"), ask("longer", "good", prompt=long)):
        engine.handle(command)
    generated = events_of(engine, Generated)
    last = {event.request: event for event in generated if event.finish}
    assert (last["spoilt"].finish, code_of(last["spoilt"])) == ("error", ErrorCode.CORRUPT)
    for name, answer in before.items():
        assert [token for event in generated if event.request == name for token in event.tokens] == answer


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_an_adapter_that_overflows_is_refused_by_its_trial(
    in_process: Any, tiny_base: Path, good: Path, tmp_path: Path, dtype: str
) -> None:
    """Its values are finite; what they compute is not. The first of its kind is tried on the whole model."""
    engine = in_process(tiny_base, dtype=dtype)
    huge = edited(good, tmp_path / "huge", _fill(1e30 if dtype == "float32" else 3e3, ".weight"))
    assert engine.mount("huge", huge).fault.code == ErrorCode.CORRUPT
    assert engine.mount("huge", good).digest == "huge", "nothing is left of it"
    assert engine.mount("later", huge).fault.code == ErrorCode.CORRUPT, "tried after another of its kind"


def test_an_adapter_on_modules_that_are_never_called(in_process: Any, tiny_base: Path, good: Path) -> None:
    engine = in_process(tiny_base)
    model = engine.engine.serving.base.model
    for layer in model.model.layers:
        layer.forward = lambda hidden_states, **_: hidden_states
    refused = engine.mount("bypassed", good)
    assert refused.fault.code == ErrorCode.NO_EFFECT


def test_weights_of_a_request_scale_its_adapter(engine: Any) -> None:
    def weighted(*parts: tuple[str, float]) -> list[int]:
        served = tuple(ServedAdapter(name, weight) for name, weight in parts)
        return engine.answers([Generate("x", PROMPT, 8, served, GREEDY)])["x"]  # type: ignore[no-any-return]

    assert weighted(("good", 0.0)) == weighted()
    assert weighted(("good", 0.5), ("good", 0.5)) == weighted(("good", 1.0)) != weighted()


def test_mounting_twice_is_mounting_once(engine: Any, good: Path) -> None:
    assert engine.mount("good", good) == engine.mount("good", good)
    engine.handle(Unmount("good"))
    assert engine.step() == [Unmounted("good")]
    (refused,) = ends_after(engine, ask("x", "good"))
    assert code_of(refused) == ErrorCode.NOT_READY


def test_mounts_are_bounded(in_process: Any, tiny_base: Path, good: Path) -> None:
    engine = in_process(tiny_base, max_mounted_adapters=1)
    assert isinstance(engine.mount("one", good), Mounted)
    assert engine.mount("two", good).fault.code == ErrorCode.NO_CAPACITY
    engine.handle(Unmount("one"))
    engine.step()
    assert isinstance(engine.mount("two", good), Mounted)


def test_an_adapter_leaves_when_its_last_request_ends(engine: Any) -> None:
    engine.handle(ask("runs", "good", tokens=3))
    engine.step()
    engine.handle(Unmount("good"))
    engine.handle(ask("late", "good"))
    events = []
    while engine.engine.busy:
        events += [event for event in engine.step() if not isinstance(event, StepDone | Occupancy)]
    assert [(type(event), getattr(event, "request", None)) for event in events] == [
        (Generated, "late"),
        (Generated, "runs"),
        (Generated, "runs"),
        (Unmounted, None),
    ]
    assert events[0].fault.code == ErrorCode.NOT_READY


def test_unmounting_what_is_still_loading(tiny_base: Path, good: Path, in_process: Any) -> None:
    from graft_runtime.engine.loader import AdapterReady, Loader

    engine = in_process(tiny_base)
    engine.load_later = []
    engine.handle(Mount("good", str(good), "good"))
    engine.handle(Unmount("good"))
    assert engine.step() == []
    outcome = Loader(engine.engine.serving.base, max_rank=16).do(engine.load_later.pop())
    assert isinstance(outcome, AdapterReady)
    engine.handle(outcome)
    assert engine.step() == [Unmounted("good")]


# requests


@pytest.mark.parametrize(
    ("submit", "code"),
    [
        (ask("x", prompt=[5, 320]), ErrorCode.INVALID_REQUEST),
        (ask("x", prompt=[-1]), ErrorCode.INVALID_REQUEST),
        (ask("x", prompt=[1] * 256), ErrorCode.CONTEXT_TOO_LONG),
        (ask("x", tokens=0), ErrorCode.INVALID_REQUEST),
        (Generate("x", [], 4, (), GREEDY), ErrorCode.INVALID_REQUEST),
        (ask("x", sampling=Sampling(temperature=float("nan"))), ErrorCode.INVALID_REQUEST),
        (ask("x", sampling=Sampling(temperature=-1)), ErrorCode.INVALID_REQUEST),
        (ask("x", sampling=Sampling(top_p=0)), ErrorCode.INVALID_REQUEST),
        (ask("x", "unknown"), ErrorCode.NOT_READY),
    ],
)
def test_requests_that_could_do_harm(engine: Any, submit: Generate, code: ErrorCode) -> None:
    (end,) = ends_after(engine, submit, ask("fine"))[:1]
    assert (end.request, end.finish, code_of(end)) == ("x", "error", code)
    assert len(engine.answers([ask("after")])["after"]) == 6


def test_an_answer_ends_where_it_should(engine: Any) -> None:
    answer = engine.answers([ask("free", "good")])["free"]
    stop = answer[3]
    engine.handle(ask("stopped", "good", stop_tokens=(stop,)))
    engine.handle(ask("full", prompt=[1] * 254, tokens=50))
    generated = events_of(engine, Generated)
    said = [token for event in generated if event.request == "stopped" for token in event.tokens]
    assert said == answer[: answer.index(stop)], "the stop token is not said"
    last = {event.request: event.finish for event in generated if event.finish}
    assert last == {"stopped": "stop", "full": "length"}
    assert sum(len(event.tokens) for event in generated if event.request == "full") == 2, "to the end of the context"


def test_a_cancelled_request_frees_its_row_at_once(in_process: Any, tiny_base: Path, good: Path) -> None:
    engine = in_process(tiny_base, max_sequences=2)
    engine.mount("good", good)
    alone = engine.answers([ask("stays", tokens=10)])
    for command in (ask("goes", "good", tokens=100), ask("stays", tokens=10), ask("waits", tokens=2)):
        engine.handle(command)
    first = engine.step()
    one = first[-1].reserved // 2
    assert first[-1] == Occupancy(running=2, waiting=1, reserved=2 * one)
    engine.handle(Cancel("goes"))
    engine.handle(Cancel("never heard of"))
    second = engine.step()
    assert second[0] == Occupancy(running=1, waiting=1, reserved=one)
    assert second[-1] == Occupancy(running=2, waiting=0, reserved=2 * one)
    assert not any(isinstance(event, Generated) and event.request == "goes" for event in second)
    assert engine.collect(first + second)["stays"] == alone["stays"]
    engine.handle(Unmount("good"))
    assert engine.step() == [Unmounted("good")], "the cancelled request holds it no longer"


def test_the_last_request_that_is_cancelled_leaves_nothing_and_says_so(in_process: Any, tiny_base: Path) -> None:
    engine = in_process(tiny_base)
    engine.handle(ask("goes", tokens=100))
    assert engine.step()[-1].reserved > 0
    engine.handle(Cancel("goes"))
    assert engine.engine.busy, "there is something to tell"
    assert engine.step() == [Occupancy()]
    assert not engine.engine.busy


def test_a_waiting_request_can_be_cancelled(in_process: Any, tiny_base: Path) -> None:
    engine = in_process(tiny_base, max_sequences=1)
    for command in (ask("runs"), ask("waits"), Cancel("waits")):
        engine.handle(command)
    assert set(ends(engine)) == {"runs"}


def test_seeds_give_the_same_answer_in_any_batch(engine: Any) -> None:
    seeded = ask("seeded", "good", tokens=20, sampling=Sampling(1.2, top_p=0.95, top_k=50, seed=11))
    alone = engine.answers([seeded])["seeded"]
    company = [ask(str(index), tokens=5 + index, sampling=Sampling(1.0, seed=index)) for index in range(6)]
    mixed = engine.answers([*company[:3], seeded, *company[3:]])
    assert mixed["seeded"] == alone
    assert engine.answers([company[0]])["0"] == mixed["0"]


def test_no_more_than_max_sequences_run(in_process: Any, tiny_base: Path) -> None:
    engine = in_process(tiny_base, max_sequences=3)
    for index in range(10):
        engine.handle(ask(str(index), tokens=2 + index % 3))
    steps = []
    finished = 0
    while engine.engine.busy:
        for event in engine.step():
            steps += [event.running] if isinstance(event, Occupancy) else []
            finished += isinstance(event, Generated) and event.finish is not None
    assert finished == 10
    assert max(steps) <= 3


@pytest.fixture
def padded(in_process: Any, make_base: Any, make_adapter: Any) -> Any:
    """An engine whose base the decoder runner refuses."""
    base = make_base("bloom")
    engine = in_process(base)
    assert engine.started[0].runner == "padded"
    assert isinstance(engine.mount("good", make_adapter("good-bloom", base=base)), Mounted)
    return engine


def test_batches_become_one_and_shrink_again(padded: Any) -> None:
    engine = padded

    def batches() -> list[Any]:
        return engine.engine.serving.scheduler.flow.batches  # type: ignore[no-any-return]

    long = [256, *range(60)]
    expected = engine.answers([ask("long", tokens=4, prompt=long)]) | engine.answers([ask("short", "good", tokens=12)])
    engine.handle(ask("short", "good", tokens=12))
    events = engine.step()
    engine.handle(ask("long", tokens=4, prompt=long))
    events += engine.step()
    assert [len(batch.requests) for batch in batches()] == [1, 1], "a new request does not wait for those that run"
    events += engine.step()
    assert [len(batch.requests) for batch in batches()] == [2], "and decodes with them after its first token"
    assert batches()[0].state.length > len(long)
    events += engine.step() + engine.step()
    assert batches()[0].state.length == len(PROMPT) + 5, "the padding goes with the row that needed it"
    assert engine.collect(events) == expected


def test_a_long_request_is_not_joined_by_many_short_ones(padded: Any) -> None:
    """Their padding would cost more than the batch of its own."""
    from graft_runtime.engine import batches

    engine = padded

    engine.handle(ask("long", tokens=3, prompt=[1] * 250))
    engine.step()
    for index in range(60):
        engine.handle(ask(str(index), tokens=3, prompt=[1]))
    engine.step()
    events = engine.step()
    assert [len(batch.requests) for batch in engine.engine.serving.scheduler.flow.batches] == [60]
    assert batches.PADDING_ALLOWED < 60 * 250
    assert sum(isinstance(event, Generated) for event in events) == 61


# steps that fail


class Fails:
    """A runner whose forward pass raises when a row holds a poisoned token."""

    POISON = 77

    def __init__(self, engine: Any, error: Exception) -> None:
        runner = engine.engine.serving.runner
        self._run, self.error = runner.run, error
        runner.run = self

    def __call__(self, batch: Any) -> torch.Tensor:
        if (batch.ids == self.POISON).any():
            raise self.error
        return self._run(batch)  # type: ignore[no-any-return]


def test_only_the_culprit_fails(engine: Any) -> None:
    innocent = [ask("a", tokens=5), ask("b", "good", tokens=5), ask("c", sampling=Sampling(1.0, seed=5))]
    before = engine.answers(innocent)
    Fails(engine, RuntimeError("boom"))
    for command in (innocent[0], ask("culprit", "good", prompt=[1, Fails.POISON]), *innocent[1:]):
        engine.handle(command)
    generated = events_of(engine, Generated)
    last = {event.request: event for event in generated if event.finish}
    assert (last["culprit"].finish, code_of(last["culprit"])) == ("error", ErrorCode.INTERNAL)
    for name, answer in before.items():
        assert [token for event in generated if event.request == name for token in event.tokens] == answer
    engine.handle(Unmount("good"))
    assert engine.step() == [Unmounted("good")]


def test_three_failed_steps_in_a_row_break_the_engine(engine: Any) -> None:
    Fails(engine, RuntimeError("boom"))
    for _ in range(Budgets().failed_steps - 1):
        (end,) = ends_after(engine, ask("x", prompt=[Fails.POISON]))
        assert end.finish == "error"
    engine.handle(ask("x", prompt=[Fails.POISON]))
    with pytest.raises(EngineBrokenError):
        engine.step()


def test_an_accelerator_s_error_breaks_the_engine_at_once(engine: Any) -> None:
    Fails(engine, RuntimeError("CUDA error: an illegal memory access was encountered"))
    engine.handle(ask("x", prompt=[Fails.POISON]))
    with pytest.raises(EngineBrokenError):
        engine.step()


# bases


def _config(**changes: Any) -> Callable[[Path], None]:
    def edit(base: Path) -> None:
        config = json.loads((base / "config.json").read_text())
        (base / "config.json").write_text(json.dumps(config | changes))

    return edit


def _drop_a_weight(base: Path) -> None:
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.1.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})


def _truncate(base: Path) -> None:
    with (base / "model.safetensors").open("r+b") as file:
        file.truncate(5000)


FOREIGN = {"AutoConfig": "configuration_evil.EvilConfig", "AutoModelForCausalLM": "modeling_evil.Evil"}
BAD_BASES: dict[str, tuple[Callable[[Path], object], ErrorCode, str]] = {
    "no config": (lambda base: (base / "config.json").unlink(), ErrorCode.NOT_A_MODEL, "config.json"),
    "config is no JSON": (lambda base: (base / "config.json").write_text("{"), ErrorCode.NOT_A_MODEL, "JSON"),
    "its own code": (_config(model_type="evil", auto_map=FOREIGN), ErrorCode.UNSAFE_FILE, "auto_map"),
    "unknown type": (_config(model_type="evil"), ErrorCode.NOT_A_MODEL, "model_type"),
    "no language model": (_config(model_type="vit"), ErrorCode.NOT_A_MODEL, "CAUSAL_LM"),
    **{
        method: (_config(quantization_config={"quant_method": method}), ErrorCode.NOT_A_MODEL, f"quantised by {method}")
        for method in ("gptq", "awq", "compressed-tensors")
    },
    "torchao in four bits": (
        _config(quantization_config={"quant_method": "torchao", "quant_type": {"default": {"_type": "Int4Config"}}}),
        ErrorCode.NOT_A_MODEL,
        "quantised by torchao",
    ),
    "GPT-OSS as published": (_config(quantization_config={"quant_method": "mxfp4"}), ErrorCode.NOT_A_MODEL, "mxfp4"),
    "no weights": (lambda base: (base / "model.safetensors").unlink(), ErrorCode.NOT_A_MODEL, "model.safetensors"),
    "a pickle": (
        lambda base: (base / "model.safetensors").rename(base / "pytorch_model.bin"),
        ErrorCode.UNSAFE_FILE,
        "pytorch_model.bin",
    ),
    "truncated": (_truncate, ErrorCode.NOT_A_MODEL, "can't be loaded"),
    "a weight is missing": (_drop_a_weight, ErrorCode.NOT_A_MODEL, "incomplete"),
    "another shape": (_config(intermediate_size=40), ErrorCode.NOT_A_MODEL, "tiny"),
}


@pytest.mark.parametrize("kind", list(BAD_BASES))
def test_a_base_that_can_t_be_served(kind: str, in_process: Any, tiny_base: Path, good: Path, tmp_path: Path) -> None:
    edit, code, said = BAD_BASES[kind]
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    (base / "configuration_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    edit(base)
    engine = in_process(base)
    (failed,) = engine.started
    assert isinstance(failed, BaseFailed)
    assert failed.fault.code == code, failed.fault
    assert "`tiny`" in failed.fault.what
    assert said in failed.fault.what
    if said == "mxfp4":
        assert "Mxfp4Config(dequantize=True)" in (failed.fault.hint or "")
    assert not (tmp_path / "ran").exists(), "foreign code has run"
    assert engine.mount("good", good).fault.code == ErrorCode.NOT_READY
    (end,) = ends_after(engine, ask("x"))
    assert code_of(end) == ErrorCode.NOT_READY


def test_code_beside_a_model_that_needs_none_is_not_run(in_process: Any, tiny_base: Path, tmp_path: Path) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    (base / "modeling_evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    _config(auto_map=FOREIGN)(base)
    (loaded,) = in_process(base).started
    assert isinstance(loaded, BaseLoaded)
    assert not (tmp_path / "ran").exists()


def test_a_context_ends_where_positions_would_depend_on_other_rows(
    in_process: Any, tiny_base: Path, tmp_path: Path
) -> None:
    base = shutil.copytree(tiny_base, tmp_path / "base")
    rope = {"rope_type": "dynamic", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 64}
    _config(rope_parameters=rope)(base)
    (loaded,) = in_process(base).started
    assert loaded.context_length == 64


def test_memory_that_runs_out_while_mounting(engine: Any, good: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_memory(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError("out of memory")

    monkeypatch.setattr("graft_runtime.engine.loader.compile_adapter", no_memory)
    assert engine.mount("large", good).fault.code == ErrorCode.NO_CAPACITY
    assert len(engine.answers([ask("after", "good")])["after"]) == 6


@pytest.mark.parametrize("failing", [0, 9], ids=["the first module", "the tenth module"])
def test_memory_that_runs_out_while_an_adapter_becomes_active(
    engine: Any, failing: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = ends_after(engine, ask("alone", "good"))[0].tokens
    put, calls = BankModule.put, iter(range(1_000))

    def full(self: BankModule, *arguments: Any) -> None:
        if next(calls) >= failing:
            raise torch.OutOfMemoryError("out of memory")
        put(self, *arguments)

    with monkeypatch.context() as patched:
        patched.setattr(BankModule, "put", full)
        engine.handle(ask("waits", "good"))
        engine.handle(ask("base"))
        ended = ends(engine)
    assert code_of(ended["waits"]) == ErrorCode.NO_CAPACITY, "nothing else ran that could have made room"
    assert ended["base"].finish == "length"
    assert engine.engine.serving.runner.bank.active == 0
    assert ends_after(engine, ask("again", "good"))[0].tokens == expected


@pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
def test_a_base_serves_at_its_dtype(dtype: str, in_process: Any, tiny_base: Path, good: Path) -> None:
    engine = in_process(tiny_base, dtype=dtype, max_sequence_length=100)
    (loaded,) = engine.started
    assert (loaded.dtype, loaded.context_length) == ({"auto": "float32"}.get(dtype, dtype), 100)
    mounted = engine.mount("good", good)
    assert isinstance(mounted, Mounted)
    answers = engine.answers([ask("base"), ask("adapted", "good")])
    assert {name: len(answer) for name, answer in answers.items()} == {"base": 6, "adapted": 6}


@pytest.mark.parametrize(
    ("quota", "granted"),
    [("max 100000", 8), ("400000 100000", 4), ("150000 100000", 1), ("5000 100000", 1), ("9900000 100000", 8), ("", 8)],
)
def test_threads_follow_the_quota(tmp_path: Path, quota: str, granted: int) -> None:
    (tmp_path / "cpu.max").write_text(quota)
    assert granted_processors(tmp_path, 8) == granted
    assert granted_processors(tmp_path / "nowhere", 8) == 8


@pytest.mark.parametrize(("quota", "granted"), [("-1", 8), ("400000", 4), ("5000", 1)])
def test_threads_follow_the_quota_of_cgroups_of_version_1(tmp_path: Path, quota: str, granted: int) -> None:
    (tmp_path / "cpu").mkdir()
    (tmp_path / "cpu" / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (tmp_path / "cpu" / "cpu.cfs_period_us").write_text("100000\n")
    assert granted_processors(tmp_path, 8) == granted
