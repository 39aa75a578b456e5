"""Static steps: the same answers as packed ones, and nothing in them that a GPU could not capture and replay."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from graft_runtime.adapters.deltas import CompiledAdapter, LowRank, ModuleDelta
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.tasks import Task
from graft_runtime.engine.budgets import Budgets
from graft_runtime.messages import Cancel, Generate, Mounted, Sampling, ServedAdapter
from graft_runtime.model.bank import Bank
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.module_tree import layout_of
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.decoder.attention import IMPLEMENTATION, Family, LayerShape, Piece
from graft_runtime.runners.decoder.pages import PAGE, Pages
from graft_runtime.runners.decoder.places import open_places
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.decoder.static import static_rooms
from graft_runtime.runners.decoder.step import PackedRow, Step
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

NEW_TOKENS = 20
PROMPTS = [
    [256, *b"hello"],
    [256, *b"select * from users where id = 7"],
    [5],
    [256, *b"Dear Sir"],
    [256, *b"to be" * 6],
]
FAMILIES = ["llama", "qwen3", "gemma3", "gemma2", "gpt_oss", "mixtral"]
MODULES = {2: ["q_proj", "o_proj"], 4: ["q_proj", "k_proj", "v_proj"], 12: ["k_proj"]}
"""What the adapter of each rank changes."""
PAGES = Budgets(pages=True)


@contextmanager
def recorded(runner: DecoderRunner) -> Iterator[list[Step]]:
    """The steps that go through the model."""
    steps: list[Step] = []
    forward = runner._forward

    def record(step: Step) -> torch.Tensor:
        steps.append(step)
        return forward(step)

    runner._forward = record  # type: ignore[method-assign]
    yield steps
    del runner._forward


def submits(adapters: Sequence[str]) -> list[Generate]:
    """Rows of the base, of each adapter, at half its weight, and a sum of two."""
    first, second, *_ = adapters
    whose: list[tuple[ServedAdapter, ...]] = [(), *((ServedAdapter(name, 1.0),) for name in adapters)]
    whose += [(ServedAdapter(first, 0.5),), (ServedAdapter(first, 1.0), ServedAdapter(second, 0.5))]
    return [
        Generate(f"{row}", PROMPTS[row % len(PROMPTS)], NEW_TOKENS - row % 3, served, Sampling(temperature=0))
        for row, served in enumerate(whose * 2)
    ]


def answers(engine: Any, asked: Sequence[Generate], seed: int) -> dict[str, list[int]]:
    """The tokens of each; requests come while others decode, and one is cancelled."""
    chosen, events = random.Random(seed), []
    for submit in chosen.sample(asked, len(asked)):
        engine.handle(submit)
        events += [event for _ in range(chosen.randrange(4)) for event in engine.step()]
    engine.handle(Cancel(asked[3].request))
    found: dict[str, list[int]] = engine.collect(events)
    return {name: tokens for name, tokens in found.items() if name != asked[3].request}


@pytest.mark.parametrize("family", FAMILIES)
def test_static_steps_answer_as_packed_ones(family: str, make_base: Any, make_adapter: Any, in_process: Any) -> None:
    base = make_base(family)
    packed, static = in_process(base), in_process(base, PAGES)
    adapters = {
        f"rank-{rank}": make_adapter(f"rank-{rank}", base=base, r=rank, target_modules=modules)
        for rank, modules in MODULES.items()
    }
    for name, directory in adapters.items():
        for engine in (packed, static):
            assert isinstance(engine.mount(name, directory), Mounted)
    asked = submits(list(adapters))
    with recorded(static.engine.serving.runner) as steps:
        assert answers(static, asked, 1) == answers(packed, asked, 1)
    decoding = [step for step in steps if step.ids.shape[1] == len(step.answering) or step.shape is not None]
    assert all(step.shape is not None for step in decoding), "every step whose rows all decode is static"
    sizes = Counter(step.ids.shape[1] for step in steps if step.shape is not None)
    assert set(sizes) <= {1, 2, 4, 8, 16}
    assert len(sizes) > 2, sizes
    assert any(step.adapters is not None for step in decoding)
    assert any(step.adapters is None for step in decoding), "of the base alone"
    assert static.engine.serving.runner.kv.reserved == 0


def test_what_is_more_than_columns_stays_packed(tiny_base: Any, make_adapter: Any, in_process: Any) -> None:
    """Tokens of an adapter's own are in no column: while it is active, rows with adapters are packed."""
    engine = in_process(tiny_base, PAGES)
    engine.mount("plain", make_adapter("plain"))
    engine.mount("rows", make_adapter("rows", trainable_token_indices=[1, 2, 3]))
    runner = engine.engine.serving.runner
    for name, static in ((None, True), ("plain", True), ("rows", False), ("plain", True)):
        served = (ServedAdapter(name, 1.0),) if name else ()
        with recorded(runner) as steps:
            engine.answers([Generate("1", PROMPTS[0], 8, served, Sampling(temperature=0))])
        assert [step.shape is not None for step in steps] == [False] + [static] * 7, name


def test_a_row_of_another_s_pages_is_never_read(tiny_base: Any, in_process: Any) -> None:
    """Pages come back with what an earlier sequence left in them, NaN at worst."""
    engine = in_process(tiny_base, PAGES)
    asked = [Generate(str(row), prompt, NEW_TOKENS, (), Sampling(temperature=0)) for row, prompt in enumerate(PROMPTS)]
    expected = engine.answers(asked)
    kv = engine.engine.serving.runner.kv
    for pool in (*kv.keys, *kv.values):
        pool.fill_(float("nan"))
    assert engine.answers(asked) == expected


def test_pages_grow_until_there_are_none(tiny_base: Any, in_process: Any) -> None:
    """The youngest goes back to the queue for the others' pages, and goes on later from where it was."""
    engine = in_process(tiny_base, Budgets(pages=True), max_sequences=3)
    plenty: dict[str, list[int]] = {}
    asked = [Generate(str(row), [256, *[row + 3] * (PAGE - 30)], 25, (), Sampling(temperature=0)) for row in range(3)]
    for submit in asked:
        plenty |= engine.answers([submit])
    kv = engine.engine.serving.runner.kv
    assert kv.longest == PAGE
    assert kv.reserved == 0
    kept = [kv.reserve(PAGE) for _ in range(2)]
    assert engine.answers(asked) == plenty, "one after the other"
    for place in kept:
        kv.release(place)
    assert kv.reserved == 0


class Audit(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """What a pass does: each operation, the shapes it is given, its numbers, and where what outlives the pass lies."""

    def __init__(self, kept: set[int]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.kept, self.calls = kept, list[Any]()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = [self.of(leaf) for leaf in tree_leaves((args, kwargs or {}))]
        self.calls.append((str(func), given))
        return func(*args, **(kwargs or {}))

    def of(self, leaf: Any) -> Any:
        if not isinstance(leaf, torch.Tensor):
            return leaf
        address = leaf.untyped_storage().data_ptr()
        return tuple(leaf.shape), leaf.dtype, (address, leaf.storage_offset()) if address in self.kept else None


def storages(runner: DecoderRunner, step: Step) -> set[int]:
    """Where weights, pages, the bank and the step lie."""
    tensors = [*runner._base.model.parameters(), *runner._base.model.buffers(), step.ids, step.positions, step.last]
    for part in runner.bank.modules.values():
        tensors += part.columns or ()
    assert isinstance(runner.kv, Pages)
    tensors += [*runner.kv.keys, *runner.kv.values]
    return {tensor.untyped_storage().data_ptr() for tensor in tensors}


@pytest.mark.parametrize("family", ["llama", "qwen3", "gemma3", "gemma2"])
@torch.inference_mode()
def test_two_steps_of_one_shape_do_the_same_at_the_same_places(
    family: str, make_base: Any, make_adapter: Any, in_process: Any
) -> None:
    """So that the first may stand for the second: other rows, tokens, lengths and adapters are other values only."""
    base = make_base(family)
    engine = in_process(base, PAGES)
    for name, rank in (("one", 4), ("two", 8), ("three", 4)):
        engine.mount(name, make_adapter(name, base=base, r=rank))
    runner = engine.engine.serving.runner

    def audited(names: Sequence[str | None], prompts: Sequence[list[int]]) -> tuple[Any, list[Any]]:
        for row, (name, prompt) in enumerate(zip(names, prompts, strict=True)):
            served = (ServedAdapter(name, 1.0),) if name else ()
            engine.handle(Generate(f"row {row}", prompt, 12, served, Sampling(temperature=0)))
        engine.step()
        (turn,) = engine.engine.serving.scheduler.schedule()
        step = runner.pack([running.row(1) for running in turn._running])
        with Audit(storages(runner, step)) as audit:
            runner._forward(step)
        for row in range(len(names)):
            engine.handle(Cancel(f"row {row}"))
        engine.collect([])
        return step.shape, audit.calls

    first, expected = audited(["one", None, "two"], PROMPTS[:3])
    second, made = audited(["two", "three", None, "three"], PROMPTS[1:])
    assert first == second is not None
    assert len(made) > 100
    assert made == expected
    assert audited([None, None, None], PROMPTS[:3])[0] not in {first, None}, "rows of the base alone are another shape"


class OnDevice(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """No operation may be given a tensor of the host, nor one number that lies there: a capture can't copy from it."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        tensors = [leaf for leaf in tree_leaves((args, kwargs or {}, made)) if isinstance(leaf, torch.Tensor)]
        assert all(tensor.device.type == "cuda" for tensor in tensors), (func, tensors)
        return made


def plain_family(config: Any) -> Family:
    layer = LayerShape(config.num_key_value_heads, config.head_dim, config.head_dim)
    kinds = getattr(config, "layer_types", None) or ["full_attention"] * config.num_hidden_layers
    windows = tuple(config.sliding_window if kind == "sliding_attention" else None for kind in kinds)
    return Family((layer,) * config.num_hidden_layers, windows, softcap=False)


def adapter_on(base: BaseModel, rank: int) -> CompiledAdapter:
    """A low rank on every linear module."""
    modules = {
        path: ModuleDelta(
            low_rank=LowRank(
                torch.empty(rank, shape.input_features, dtype=base.dtype, device=base.device),
                torch.empty(rank, shape.output_features, dtype=base.dtype, device=base.device),
            )
        )
        for path, shape in base.layout.linear.items()
    }
    facts = AdapterFacts(method="LORA", rank=rank, module_count=len(modules), deltas=frozenset({DeltaKind.LOW_RANK}))
    return CompiledAdapter(facts, modules)


@pytest.mark.parametrize(
    ("family", "dtype"),
    [("llama", torch.bfloat16), ("qwen3", torch.bfloat16), ("gemma3", torch.bfloat16), ("llama", torch.float32)],
    ids=str,
)
@torch.inference_mode()
def test_a_static_step_on_a_gpu_waits_for_nothing_and_knows_every_shape(family: str, dtype: torch.dtype) -> None:
    """On tensors that are on a GPU by name only: reading one of them on the host, or a shape from one, fails."""
    import transformers

    options: dict[str, Any] = {
        "vocab_size": 320,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16,
    }
    configs = {"llama": transformers.LlamaConfig, "qwen3": transformers.Qwen3Config}
    config = (
        transformers.Gemma3TextConfig(**options, sliding_window=8, layer_types=["sliding_attention", "full_attention"])
        if family == "gemma3"
        else configs[family](**options)
    )
    model = transformers.AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    layout = layout_of(model, "fake")
    with FakeTensorMode():
        for module in model.modules():
            for kept in (module._parameters, module._buffers):
                kept |= {
                    name: torch.empty(tensor.shape, dtype=tensor.dtype, device="cuda")
                    for name, tensor in kept.items()
                    if tensor is not None
                }
        model.set_attn_implementation(IMPLEMENTATION)
        base = BaseModel("fake", Task.CAUSAL_LM, model, layout, 512, config.vocab_size)
        bank = Bank(base.layout.linear, max_rank=16, dtype=dtype, device=base.device)
        places = open_places(
            plain_family(config), pages=True, tokens=64 * PAGE, longest=512, dtype=dtype, device=base.device
        )
        assert places.attention.in_place == (dtype != torch.float32)  # type: ignore[attr-defined]
        runner = DecoderRunner(base, AdapterModules(model, bank), places)
        runner.static = static_rooms(places, bank, 8)  # without graphs, which need more than a name
        adapters = (RowAdapter(adapter_on(base, 4), 1.0),), (RowAdapter(adapter_on(base, 8), 0.5),), ()
        for mine in adapters:
            assert bank.hold(mine)
        rows = [
            PackedRow(Piece(places.kv.reserve(at + 1), at, 1), [3], mine, answers=True)
            for at, mine in zip((0, 300, 7), adapters, strict=True)
        ]
        step = runner.pack(rows)
        assert step.shape is not None
        with OnDevice():  # type: ignore[no-untyped-call]
            logits = runner._forward(step)
    assert (logits.shape, logits.device.type) == ((4, 320), "cuda")
