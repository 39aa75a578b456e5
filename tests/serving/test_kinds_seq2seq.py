"""Sequence-to-sequence models: greedy answers and logits equal Transformers + PEFT, alone and in mixed batches."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.contract.tasks import Task
from graft_runtime.messages import BaseLoaded, Generate, Mounted, Sampling, ServedAdapter
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.together import Sharing, Together
from safetensors.torch import load_file, save_file

from tests.support.families import build_family
from tests.support.oracle import Answer, Oracle

TASK = "SEQ_2_SEQ_LM"
TOLERANCE = 1e-4
"""Of logits in float32; a token passes where the reference's best two are closer."""
NEW_TOKENS = 12
PROMPTS = [[*b"hello", 257], [*b"select * from users where id = 7", 257], [*b"?", 257], [*b"Dear Sir or Madam", 257]]
FAMILIES: dict[str, dict[str, list[str] | str]] = {
    "t5": {"attention": ["q", "v"], "everything": "all-linear", "cross": r".*EncDecAttention\.[kvo]"},
    "bart": {"attention": ["q_proj", "v_proj"], "everything": "all-linear", "cross": r".*encoder_attn\.[kv]_proj"},
}
ADAPTERS = [None, "attention", "everything", "cross"]


Setting = tuple[Any, dict[tuple[int, str | None], Answer]]


@pytest.fixture(scope="module", params=list(FAMILIES))
def setting(request: Any, make_base: Any, make_adapter: Any, make_engine: Any) -> Setting:
    """An engine with three adapters, and what each prompt is answered by each."""
    base = make_base(request.param, TASK)
    engine, oracle = make_engine(base), Oracle(base, TASK)
    for name, modules in FAMILIES[request.param].items():
        adapter = make_adapter(name, base=base, task=TASK, target_modules=modules)
        oracle.load(adapter)
        assert isinstance(engine.mount(name, adapter), Mounted)
    rows = [(index, name) for index in range(len(PROMPTS)) for name in ADAPTERS]
    return engine, {(index, name): oracle.answer(PROMPTS[index], name, tokens=NEW_TOKENS) for index, name in rows}


def submit(request: str, prompt: Sequence[int], name: str | None, tokens: int = NEW_TOKENS) -> Generate:
    adapters = (ServedAdapter(name, 1.0),) if name else ()
    return Generate(request, list(prompt), tokens, adapters, Sampling(temperature=0))


def assert_same(answer: list[int], expected: Answer) -> None:
    for mine, theirs, margin in zip(answer, expected.tokens, expected.margins, strict=True):
        if mine != theirs:
            assert margin < TOLERANCE, (answer, expected.tokens)
            return  # a near tie went the other way: what follows may differ


def test_the_base_is_served_by_the_padded_runner(setting: Setting) -> None:
    loaded = setting[0].started[0]
    assert isinstance(loaded, BaseLoaded)
    assert (loaded.runner, loaded.task) == ("padded", Task.SEQ_2_SEQ_LM)
    assert setting[0].engine.serving.runner.together == Sharing(Together.ANY_LENGTH, joins=True)


class Rows:
    """Some rows on the runner, that are told the reference's tokens."""

    def __init__(self, setting: Setting, names: list[tuple[int, str | None]]) -> None:
        engine, self.expected = setting
        self.runner, self.names = engine.engine.serving.runner, names
        mounts = engine.engine.mounts
        self.adapters = [(RowAdapter(mounts.hold(name), 1.0),) if name else () for _, name in names]
        assert all(self.runner.bank.hold(row) for row in self.adapters)
        self.batch = self.runner.start([PROMPTS[index] for index, _ in names], [[] for _ in names], self.adapters)
        self.done = [0 for _ in names]

    def step(self) -> None:
        """Each row's next logits are the reference's."""
        logits = self.runner.logits(self.batch).cpu()
        for row, name in enumerate(self.names):
            assert (logits[row] - self.expected[name].logits[self.done[row]]).abs().max() <= TOLERANCE, name
        self.batch.extend([self.expected[name].tokens[done] for name, done in zip(self.names, self.done, strict=True)])
        self.done = [done + 1 for done in self.done]

    def take_in(self, other: Rows) -> None:
        self.batch.join(other.batch)
        self.names, self.done = self.names + other.names, self.done + other.done

    def keep(self, rows: list[int]) -> None:
        self.batch.keep(rows)
        self.names, self.done = [self.names[row] for row in rows], [self.done[row] for row in rows]


@torch.inference_mode()
def test_every_logit_equals_peft(setting: Setting) -> None:
    _, expected = setting
    names = random.Random(1).sample(list(expected), len(expected))
    first, second, third = Rows(setting, names[:5]), Rows(setting, names[5:6]), Rows(setting, names[6:])
    everyone = (first, second, third)
    held = [row for rows in everyone for row in rows.adapters]
    for rows, steps in zip(everyone, (4, 1, 2), strict=True):
        for _ in range(steps):
            rows.step()
    first.take_in(third)
    first.step()
    first.keep([12, 4, 0, 7])
    first.step()
    second.take_in(first)
    for _ in range(3):
        second.step()
    for row in held:
        second.runner.bank.release(row)


def test_adapters_show(setting: Setting) -> None:
    _, expected = setting
    for name in ADAPTERS[1:]:
        assert (expected[1, name].logits[0] - expected[1, None].logits[0]).abs().max() > 0.1


def test_alone_mixed_and_joined_equal_peft(setting: Setting) -> None:
    engine, expected = setting
    for name in ADAPTERS:
        assert_same(engine.answers([submit("alone", PROMPTS[1], name)])["alone"], expected[1, name])
    mixed = engine.answers([submit(f"{index} {name}", PROMPTS[index], name) for index, name in expected])
    for (index, name), answer in expected.items():
        assert_same(mixed[f"{index} {name}"], answer)
    # Shuffled, one after the other: each begins while others decode, joins them, and leaves before some of them.
    events: list[Any] = []
    for index, name in random.Random(0).sample(list(expected), len(expected)):
        engine.handle(submit(f"{index} {name}", PROMPTS[index], name))
        events += [event for _ in range(2) for event in engine.step()]
    joined = engine.collect(events)
    for (index, name), answer in expected.items():
        assert_same(joined[f"{index} {name}"], answer)


def test_trained_tokens_reach_the_encoder_and_the_decoder(make_base: Any, make_adapter: Any, in_process: Any) -> None:
    """T5's encoder and decoder have embeddings of their own that share one weight; PEFT writes one of them."""
    base = make_base("t5", TASK)
    options = {"trainable_token_indices": [9, 4, 300], "target_modules": ["q"]}
    adapter = make_adapter("tokens", base=base, task=TASK, **options)
    tensors = load_file(adapter / "adapter_model.safetensors")
    (rows,) = (name for name in tensors if name.endswith("trainable_tokens_delta"))
    tensors[rows] = torch.randn(tensors[rows].shape, generator=torch.Generator().manual_seed(5))
    save_file(tensors, adapter / "adapter_model.safetensors")
    engine, oracle = in_process(base), Oracle(base, TASK)
    assert isinstance(engine.mount("tokens", adapter), Mounted)
    oracle.load(adapter)
    for prompt in ([9, 4, 9, 300, 2], [4, 5]):
        (answer,) = engine.answers([submit("x", prompt, "tokens")]).values()
        assert_same(answer, oracle.answer(prompt, "tokens", tokens=NEW_TOKENS))


@pytest.mark.parametrize("family", ["led", "fsmt"])
def test_modules_that_are_handed_tokens_before_rows(
    family: str, tmp_path: Path, make_adapter: Any, in_process: Any
) -> None:
    """Some of FSMT's and LED's are; LED pads rows to its windows as well. Rows of eight are as many as their tokens."""
    base = tmp_path / "base"
    build_family(base, family)
    engine, oracle = in_process(base), Oracle(base, TASK)
    for name in ("one", "other"):
        adapter = make_adapter(name, base=base, task=TASK, target_modules="all-linear", lora_alpha=64)
        oracle.load(adapter)
        assert isinstance(engine.mount(name, adapter), Mounted)
    unequal = [(prompt, name) for prompt in PROMPTS for name in ("one", None, "other")]
    eights = [([*b"hello yo"[turn:], *b"hello yo"[:turn]], ("one", None, "other")[turn % 3]) for turn in range(8)]
    for rows in (unequal, eights):
        answers = engine.answers([submit(str(row), prompt, asked) for row, (prompt, asked) in enumerate(rows)])
        for row, (prompt, asked) in enumerate(rows):
            assert_same(answers[str(row)], oracle.answer(prompt, asked, tokens=NEW_TOKENS))
