"""Greedy answers equal Transformers + PEFT token for token: base and adapters, alone and in one mixed batch."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import Generate, Generated, Mounted, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file
from torch.nn import functional

NEW_TOKENS = 24
PROMPTS = [[256, *b"hello"], [256, *b"select * from users where id = 7"], [256, *b"?"], [256, *b"Dear Sir or Madam"]]

ADAPTERS: dict[str, dict[str, Any]] = {
    "plain": {"r": 4, "lora_alpha": 8},
    "stabilized": {"r": 8, "lora_alpha": 4, "use_rslora": True},
    "patterned": {"r": 4, "lora_alpha": 8, "rank_pattern": {}, "alpha_pattern": {}},
}
PATTERNS: dict[str, tuple[dict[str, int], dict[str, float]]] = {
    "llama": ({r"layers\.0\.self_attn\.q_proj": 2, "q_proj": 3, "down_proj": 6}, {"v_proj": 3, "layers.1.mlp.*": 1.5}),
    "qwen3": ({"q_proj": 3, "down_proj": 6}, {"v_proj": 3, "o_proj": 1.5}),
    "gemma3": ({"q_proj": 3, "down_proj": 6}, {"v_proj": 3, "o_proj": 1.5}),
    "gemma2": ({"q_proj": 3, "down_proj": 6}, {"v_proj": 3, "o_proj": 1.5}),
    "gpt_oss": ({"q_proj": 3, "k_proj": 6}, {"v_proj": 3, "o_proj": 1.5}),
    "mistral": ({"q_proj": 3, "down_proj": 6}, {"v_proj": 3, "o_proj": 1.5}),
    "opt": ({"q_proj": 3, "fc1": 6}, {"v_proj": 3, "fc2": 1.5}),
    "gpt2": ({"c_attn": 3, "mlp.c_proj": 6}, {"c_fc": 3, r"h\.1\.attn\.c_proj": 1.5}),
    "bloom": ({"query_key_value": 3}, {"dense": 3}),
    "mamba": ({"in_proj": 3}, {"x_proj": 3}),
}
RUNNERS = dict.fromkeys(PATTERNS, "decoder") | {
    "bloom": "padded",  # attention with ALiBi of its own, never through Transformers' interface
    "mamba": "padded",  # a state, no attention
}
TARGETS = {"mamba": ["in_proj", "x_proj"]}


def check_all(oracle: Any, answers: dict[str, list[int]], rows: list[tuple[list[int], str | None]]) -> None:
    for index, (prompt, name) in enumerate(rows):
        assert len(answers[str(index)]) == NEW_TOKENS
        oracle.check(answers[str(index)], prompt, name)


@pytest.mark.parametrize("family", list(PATTERNS))
def test_greedy_equals_peft(family: str, make_base: Any, make_adapter: Any, in_process: Any, make_oracle: Any) -> None:
    base = make_base(family)
    ranks, alphas = PATTERNS[family]
    options = ADAPTERS | {"patterned": ADAPTERS["patterned"] | {"rank_pattern": ranks, "alpha_pattern": alphas}}
    targets = {"target_modules": TARGETS[family]} if family in TARGETS else {}
    oracle, engine = make_oracle(base), in_process(base)
    assert engine.started[0].runner == RUNNERS[family]
    for name, lora in options.items():
        adapter = make_adapter(name, base=base, **targets, **lora)
        engine.mount(name, adapter)
        oracle.load(adapter)
    names: list[str | None] = [None, *options]
    rows = [(prompt, name) for name in names for prompt in PROMPTS]
    assert len({tuple(oracle.answer(PROMPTS[1], name).tokens) for name in names}) == 4, "each must show"

    def submit(request: str, prompt: list[int], name: str | None) -> Generate:
        adapters = (ServedAdapter(name, 1.0),) if name else ()
        return Generate(request, prompt, NEW_TOKENS, adapters, Sampling(temperature=0))

    alone = {name: engine.answers([submit("alone", PROMPTS[1], name)])["alone"] for name in names}
    for asked, answer in alone.items():
        oracle.check(answer, PROMPTS[1], asked)
    mixed = engine.answers([submit(str(index), prompt, name) for index, (prompt, name) in enumerate(rows)])
    check_all(oracle, mixed, rows)
    # One after the other, shuffled: each starts while others decode, and leaves before some of them.
    order = random.Random(0).sample(range(len(rows)), len(rows))
    events = []
    for index in order:
        engine.handle(submit(str(index), *rows[index]))
        events += [event for _ in range(2) for event in engine.step()]
    check_all(oracle, engine.collect(events), rows)


def test_kernels_that_return_time_before_heads(
    tiny_base: Path, in_process: Any, make_oracle: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The layout of what SDPA returns is the kernel's: on a GPU that of float32 differs from that of halves."""
    stock = functional.scaled_dot_product_attention

    def time_first(*arguments: Any, **options: Any) -> torch.Tensor:
        return stock(*arguments, **options).transpose(1, 2).contiguous().transpose(1, 2)

    monkeypatch.setattr(functional, "scaled_dot_product_attention", time_first)
    engine, oracle = in_process(tiny_base), make_oracle(tiny_base)
    assert engine.started[0].runner == "decoder"
    submits = [
        Generate(str(row), prompt, NEW_TOKENS, (), Sampling(temperature=0)) for row, prompt in enumerate(PROMPTS)
    ]
    check_all(oracle, engine.answers(submits), [(prompt, None) for prompt in PROMPTS])


def test_an_adapter_on_the_head(tiny_base: Path, make_adapter: Any, in_process: Any, make_oracle: Any) -> None:
    """The head computes only the last token of each row."""
    adapter = make_adapter("head", target_modules=["lm_head", "q_proj"], r=4)
    weights = adapter / "adapter_model.safetensors"  # peft saves the base's head beside
    save_file({name: tensor for name, tensor in load_file(weights).items() if "lora_" in name}, weights)
    oracle, engine = make_oracle(tiny_base), in_process(tiny_base)
    oracle.load(adapter)
    assert isinstance(engine.mount("head", adapter), Mounted)
    rows: list[tuple[list[int], str | None]] = [(prompt, name) for prompt in PROMPTS for name in (None, "head")]
    events: list[Any] = []
    for index, (prompt, name) in enumerate(rows):
        adapters = (ServedAdapter(name, 1.0),) if name else ()
        engine.handle(Generate(str(index), prompt, NEW_TOKENS, adapters, Sampling(temperature=0)))
        events += engine.step() if index % 3 == 0 else []
    check_all(oracle, engine.collect(events), rows)


def test_a_request_that_comes_while_others_decode_changes_nothing(
    tiny_base: Path, make_adapter: Any, in_process: Any
) -> None:
    engine = in_process(tiny_base)
    engine.mount("a", make_adapter("a"))

    def submit(name: str) -> Generate:
        adapters = (ServedAdapter("a", 1.0),) if name == "late" else ()
        return Generate(name, PROMPTS[1], 20, adapters, Sampling(temperature=0))

    alone = engine.answers([submit("early")]) | engine.answers([submit("late")])
    engine.handle(submit("early"))
    events = [event for _ in range(5) for event in engine.step()]
    engine.handle(submit("late"))
    soon = [event for _ in range(2) for event in engine.step()]
    assert any(isinstance(event, Generated) and event.request == "late" for event in soon), "within two steps"
    together = engine.collect(events + soon)
    assert together == alone
