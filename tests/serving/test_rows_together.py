"""No row's answer depends on its neighbours: alone, begun together, begun one after another, and left behind."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import BaseLoaded, Generate, Sampling
from graft_runtime.runners.together import Together

from tests.support.families import DECODERS, SEQ_2_SEQ, build_family

NEAR_TIE = 1e-4
PROMPTS = (
    [3, 1, 2, 5, 9, 11, 4],
    [7, 8, 30, 6, 100, 33, 44, 2, 9, 17, 29, 31, 40, 41, 42],
    [1, 2],
    [9, 8, 7, 6, 5, 4, 3],
)
LONGEST = 12
SERVED_BY = {
    "decoder": {"llama", "mistral", "gemma2", "gemma3", "gpt_oss", "cohere2", "qwen3_moe", "phi3", "gpt2", "opt"},
    "of one length": {
        "mamba", "mamba2", "falcon_mamba", "jamba", "bamba", "falcon_h1", "granite_hybrid", "qwen3_next", "lfm2",
        "recurrent_gemma", "paligemma",
    },
}  # fmt: skip


def check(model: Any, prompt: Sequence[int], answer: Sequence[int]) -> None:
    """Check an answer, of LONGEST tokens or fewer, against what Transformers generates; near ties may differ."""
    ids = torch.tensor([prompt])
    made = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=len(answer),
        do_sample=False,
        eos_token_id=None,
        forced_bos_token_id=None,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_logits=True,
    )
    best = torch.cat(made.logits).topk(2, dim=-1)
    for mine, theirs, logits in zip(answer, best.indices[:, 0].tolist(), best.values, strict=True):
        if mine != theirs:
            assert float(logits[0] - logits[1]) < NEAR_TIE, (answer, best.indices[:, 0])
            return


def submits(tokens: int) -> list[Generate]:
    """Requests for answers of unequal length: each row leaves at another time."""
    greedily = Sampling(temperature=0)
    return [Generate(str(row), list(ids), tokens - 2 * row, (), greedily) for row, ids in enumerate(PROMPTS)]


def check_rows(engine: Any, model: Any) -> None:
    requests = submits(LONGEST)
    alone = {request.request: engine.answers([request])[request.request] for request in requests}
    for request in requests:
        check(model, request.prompt, alone[request.request])
    assert engine.answers(requests) == alone
    assert engine.answers(requests[::-1]) == alone
    events = []
    for request in requests:
        engine.handle(request)
        events += engine.step() + engine.step()
    assert engine.collect(events) == alone


@pytest.mark.parametrize("family", DECODERS)
def test_decoders(family: str, tmp_path: Path, in_process: Any) -> None:
    model = build_family(tmp_path, family)
    engine = in_process(tmp_path)
    (loaded,) = engine.started
    assert isinstance(loaded, BaseLoaded), loaded
    assert loaded.runner == ("decoder" if family in SERVED_BY["decoder"] else "padded")
    if loaded.runner == "padded":
        expected = Together.ONE_LENGTH if family in SERVED_BY["of one length"] else Together.ANY_LENGTH
        assert engine.engine.serving.runner.together.rows is expected
    check_rows(engine, model)


@pytest.mark.parametrize("family", sorted(SERVED_BY["decoder"]))
def test_decoders_that_the_probe_would_refuse(
    family: str, tmp_path: Path, in_process: Any, padded_alone: Callable[[], None]
) -> None:
    padded_alone()
    model = build_family(tmp_path, family)
    engine = in_process(tmp_path)
    assert engine.started[0].runner == "padded"
    check_rows(engine, model)


@pytest.mark.parametrize("family", SEQ_2_SEQ)
def test_sequence_to_sequence(family: str, tmp_path: Path, in_process: Any) -> None:
    model = build_family(tmp_path, family)
    engine = in_process(tmp_path)
    (loaded,) = engine.started
    assert isinstance(loaded, BaseLoaded), loaded
    check_rows(engine, model)
