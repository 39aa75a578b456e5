"""Models that are no causal language models, through the real server: what they answer, and what they refuse."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig
from graft_runtime.contract.tasks import Task

PROMPT = [*b"select * from users", 257]


def served(make_pod: Callable[..., Any], base: Path, adapter: Path, **config: Any) -> Any:
    pod = make_pod(base=base, **config)
    pod.mount_set(pod.set_of(1, pod.entry("own", adapter, pinned=True)))
    pod.start()
    pod.wait_ready()
    return pod


@torch.inference_mode()
def expected(base: Path, adapter: Path | None) -> list[int]:
    from peft import PeftModel
    from transformers import AutoModelForSeq2SeqLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForSeq2SeqLM.from_pretrained(base)
        model = PeftModel.from_pretrained(model, adapter) if adapter else model
        made = model.eval().generate(
            input_ids=torch.tensor([PROMPT]), max_new_tokens=8, do_sample=False, eos_token_id=None
        )
    return made[0, 1:].tolist()  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def translator(make_pod: Any, make_base: Any, make_adapter: Any) -> Any:
    base = make_base("t5", "SEQ_2_SEQ_LM")
    adapter = make_adapter("own", base=base, task="SEQ_2_SEQ_LM", target_modules=["q", "v", "wi", "wo"])
    pod = served(make_pod, base, adapter)
    pod.answers = {"tiny": expected(base, None), "own": expected(base, adapter)}
    return pod


def test_a_prompt_has_an_encoder_of_its_own(translator: Any) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(translator.shelf / "base")
    assert translator.status().base.runner == "padded"
    assert translator.answers["tiny"] != translator.answers["own"]
    for model, tokens in translator.answers.items():
        text = translator.text(model, prompt=PROMPT)
        assert text == tokenizer.decode(tokens, skip_special_tokens=True), model
    usage = translator.complete("own", PROMPT).json["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(PROMPT), 8)


def test_a_language_model_that_its_pool_loads_to_classify_makes_no_text(
    make_pod: Any, tiny_base: Path, make_adapter: Any
) -> None:
    adapter = make_adapter("own", task="SEQ_CLS", target_modules=["q_proj", "v_proj"])
    task = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/base"), task=Task.SEQ_CLS)
    pod = served(make_pod, tiny_base, adapter, base_model=task)
    assert pod.status().base.runner == "encoder"
    assert pod.report("own").ready
    for model in ("tiny", "own"):
        refused = pod.complete(model)
        assert (refused.status, refused.json["error"]["code"]) == (400, "NotGenerative")
