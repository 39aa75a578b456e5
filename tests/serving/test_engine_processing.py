"""Biases, penalties, min-p and early ends against Transformers' processors; log-probabilities against its logits."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.engine.blocks import SIZE
from graft_runtime.engine.log_probabilities import log_probabilities
from graft_runtime.engine.sampling import Draws, choose
from graft_runtime.messages import Generate, Generated, Sampling

VOCABULARY = 20 * SIZE + 7
PROMPTS = [[72, 101, 108, 108, 111], [1, 2, 3] * 9, [300]]
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "repetition": {"repetition_penalty": 1.3},
    "encouraged": {"repetition_penalty": 0.7},
    "presence": {"presence_penalty": 0.4},
    "frequency": {"frequency_penalty": -0.6},
    "biases": {"logit_bias": {5: 0.3, 77: -100.0, 301: 100.0}},
    "no end": {"min_tokens": 6},
    "all": {
        "repetition_penalty": 1.1,
        "presence_penalty": 0.2,
        "frequency_penalty": 0.1,
        "logit_bias": {9: 0.5},
        "min_tokens": 3,
        "logprobs": 4,
    },
}


def expected(model: Any, prompt: list[int], count: int, ends: list[int], options: dict[str, Any]) -> list[int]:
    """Return the greedy answer, by Transformers' processors where it has them and OpenAI's formula where not."""
    from transformers import (
        LogitsProcessorList,
        MinNewTokensLengthLogitsProcessor,
        RepetitionPenaltyLogitsProcessor,
        SequenceBiasLogitsProcessor,
    )

    class OpenAI:
        def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
            counts = torch.bincount(ids[0, len(prompt) :], minlength=scores.shape[1])
            frequency, presence = options.get("frequency_penalty", 0), options.get("presence_penalty", 0)
            left: torch.Tensor = scores - counts * frequency - (counts > 0) * presence
            return left

    processors = LogitsProcessorList()
    if bias := options.get("logit_bias"):
        processors.append(SequenceBiasLogitsProcessor([[[token], value] for token, value in bias.items()]))
    processors.append(RepetitionPenaltyLogitsProcessor(options.get("repetition_penalty", 1.0)))
    processors.append(OpenAI())
    processors.append(MinNewTokensLengthLogitsProcessor(len(prompt), options.get("min_tokens", 0), ends))
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]),
            logits_processor=processors,
            do_sample=False,
            max_new_tokens=count,
            eos_token_id=ends,
        )
    answer: list[int] = whole[0, len(prompt) :].tolist()
    return answer[:-1] if answer[-1] in ends else answer


@pytest.fixture(scope="module")
def ends() -> list[int]:
    """Return tokens that answers of the tiny model end with soon."""
    return list(range(0, 320, 6))


@pytest.mark.parametrize("padded", [False, True])
def test_each_row_of_a_batch_is_processed_as_by_transformers_alone(
    in_process: Callable[..., Any], tiny_base: Path, padded_alone: Any, ends: list[int], *, padded: bool
) -> None:
    from transformers import AutoModelForCausalLM

    if padded:
        padded_alone()
    engine = in_process(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    asked = [(name, index) for name in WAYS for index in range(len(PROMPTS))]
    random.Random(0).shuffle(asked)
    submits = [
        Generate(
            f"{name} {index}",
            PROMPTS[index],
            12,
            sampling=Sampling(temperature=0, **WAYS[name]),
            stop_tokens=tuple(ends),
        )
        for name, index in asked
    ]
    answers = engine.answers(submits)
    wanted = {f"{name} {at}": expected(model, PROMPTS[at], 12, ends, WAYS[name]) for name, at in asked}
    assert {name: answers.get(name, []) for name in wanted} == wanted
    assert len({tuple(answer) for answer in wanted.values()}) > len(WAYS), "the ways differ"


def test_a_model_with_an_encoder_has_its_answer_penalised_and_not_its_prompt(
    in_process: Callable[..., Any], make_base: Callable[..., Path]
) -> None:
    from transformers import AutoModelForSeq2SeqLM

    base = make_base("t5", "SEQ_2_SEQ_LM")
    model = AutoModelForSeq2SeqLM.from_pretrained(base).eval()
    prompt = [72, 101, 108, 108, 111]
    with torch.inference_mode():
        whole = model.generate(
            torch.tensor([prompt]), do_sample=False, max_new_tokens=8, repetition_penalty=2.0, eos_token_id=None
        )
    sampling = Sampling(temperature=0, repetition_penalty=2.0)
    answers = in_process(base).answers([Generate("a", prompt, 8, sampling=sampling)])
    assert answers["a"] == whole[0, 1:].tolist()


@pytest.mark.parametrize("min_p", [0.02, 0.3, 1.0])
@pytest.mark.parametrize("more", [{}, {"top_p": 0.7}, {"top_k": 9}, {"temperature": 4.0}])
def test_min_p_leaves_the_distribution_of_transformers(min_p: float, more: dict[str, Any]) -> None:
    from transformers import MinPLogitsWarper, TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    logits = torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2
    sampling = Sampling(**({"temperature": 1.5, "min_p": min_p} | more))
    scores: Any = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    wanted = MinPLogitsWarper(min_p)(None, scores).double().softmax(-1)[0]
    count = 1000
    rows = [Draws(sampling) for _ in range(count)]
    for index, row in enumerate(rows):
        row.next = partial(float, (index + 0.5) / count)  # type: ignore[method-assign]
    tokens = choose(logits.expand(count, -1), rows)
    drawn = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY) / count
    assert (drawn - wanted).abs().max() <= 1.5 / count
    assert not drawn[wanted == 0].any()


def test_log_probabilities_are_those_of_a_softmax() -> None:
    logits = torch.randn(3, VOCABULARY, generator=torch.Generator().manual_seed(1)) * 3
    wanted = logits.double().log_softmax(-1)
    found = log_probabilities(logits, [7, 5000, 0], [0, 5, 20])
    for row, (one, token, count) in enumerate(zip(found, [7, 5000, 0], [0, 5, 20], strict=True)):
        assert one.logprob == pytest.approx(float(wanted[row, token]), abs=1e-5)
        values, tokens = wanted[row].topk(count)
        assert [top for top, _ in one.top] == tokens.tolist()
        assert [value for _, value in one.top] == pytest.approx(values.tolist(), abs=1e-5)


def test_log_probabilities_of_an_answer_are_transformers_alone_and_mixed(
    in_process: Callable[..., Any], tiny_base: Path
) -> None:
    from transformers import AutoModelForCausalLM

    engine = in_process(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    for index, prompt in enumerate(PROMPTS):
        sampling = Sampling(temperature=1.0, seed=index, logprobs=index, logit_bias={5: 50.0} if index else {})
        engine.handle(Generate(str(index), prompt, 9, sampling=sampling))
    engine.handle(Generate("silent", PROMPTS[0], 9))
    told: dict[str, list[Any]] = {}
    tokens: dict[str, list[int]] = {}
    while engine.engine.busy:
        for event in engine.step():
            if isinstance(event, Generated):
                told.setdefault(event.request, []).extend(event.logprobs)
                tokens.setdefault(event.request, []).extend(event.tokens)
    assert told["silent"] == []
    for index, prompt in enumerate(PROMPTS):
        answer = tokens[str(index)]
        with torch.inference_mode():
            logits = model(torch.tensor([[*prompt, *answer]])).logits[0].log_softmax(-1)
        for at, (token, one) in enumerate(zip(answer, told[str(index)], strict=True)):
            row = logits[len(prompt) + at - 1]
            assert one.logprob == pytest.approx(float(row[token]), abs=1e-4)
            assert [top for top, _ in one.top] == row.topk(index).indices.tolist()


def test_log_probabilities_of_prompts_are_transformers_whatever_runs_beside_them(
    in_process: Callable[..., Any], tiny_base: Path
) -> None:
    from transformers import AutoModelForCausalLM

    engine = in_process(tiny_base)
    model = AutoModelForCausalLM.from_pretrained(tiny_base).eval()
    prompts = [
        [(7 * at + shift) % 320 for at in range(length)] for shift, length in ((0, 150), (3, 1), (5, 64), (6, 65))
    ]
    for index, prompt in enumerate(prompts):
        sampling = Sampling(temperature=0, logprobs=2)
        engine.handle(Generate(str(index), prompt, 3, sampling=sampling, tell_prompt=True))
        engine.handle(Generate(f"beside {index}", prompt, 3, sampling=Sampling(temperature=0)))
    told: dict[str, list[Any]] = {}
    tokens: dict[str, list[int]] = {}
    while engine.engine.busy:
        for event in engine.step():
            if isinstance(event, Generated):
                told.setdefault(event.request, []).extend(event.prompt_logprobs)
                tokens.setdefault(event.request, []).extend(event.tokens)
    for index, prompt in enumerate(prompts):
        assert tokens[str(index)] == tokens[f"beside {index}"]
        assert told[f"beside {index}"] == []
        with torch.inference_mode():
            logits = model(torch.tensor([prompt])).logits[0].log_softmax(-1)
        assert len(told[str(index)]) == len(prompt) - 1
        for at, one in enumerate(told[str(index)]):
            assert one.logprob == pytest.approx(float(logits[at, prompt[at + 1]]), abs=1e-4)
            assert [top for top, _ in one.top] == logits[at].topk(2).indices.tolist()


def test_a_runner_that_does_not_tell_prompts_refuses_to(
    in_process: Callable[..., Any], tiny_base: Path, padded_alone: Any
) -> None:
    padded_alone()
    engine = in_process(tiny_base)
    (loaded,) = engine.started
    assert not loaded.capabilities.tells_prompts
    engine.handle(Generate("a", [1, 2], 3, sampling=Sampling(logprobs=0), tell_prompt=True))
    (event,) = engine.step()
    assert event.fault.code == "InvalidRequest"
