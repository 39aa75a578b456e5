"""A base whose weights are quantised, through the real server: it answers as PEFT does on the same base."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig
from graft_runtime.contract.quantizations import Quantization

from tests.support.quantised import loading

PROMPT = "Dear Sir"
TOKENS = 8


def test_base_and_adapter_answer_as_peft_on_the_quantised_base(
    make_pod: Any, tiny_base: Path, make_adapter: Any, make_oracle: Any
) -> None:
    from transformers import AutoTokenizer

    source = Source(uri="pvc://shelf/base")
    base = BaseModelConfig(name="tiny", source=source, dtype="float32", quantization=Quantization.NF4)
    dora = make_adapter("dora", use_dora=True)
    pod = make_pod(base_model=base)
    pod.mount_set(pod.set_of(1, pod.entry("dora", dora, pinned=True)))
    pod.start()
    oracle, full = make_oracle(tiny_base, **loading("nf4")), make_oracle(tiny_base)
    oracle.load(dora)
    tokenizer = AutoTokenizer.from_pretrained(tiny_base)
    prompt = tokenizer(PROMPT)["input_ids"]
    named = {"tiny": None, "dora": "dora"}
    expected = {name: oracle.answer(prompt, adapter, tokens=TOKENS) for name, adapter in named.items()}
    assert expected["tiny"].tokens != full.answer(prompt, None, tokens=TOKENS).tokens, "it must show"
    assert expected["tiny"].tokens != expected["dora"].tokens
    pod.wait_ready()
    for name, answer in expected.items():
        end = [*answer.tokens, tokenizer.eos_token_id].index(tokenizer.eos_token_id)
        text = pod.text(name, prompt=PROMPT, max_tokens=TOKENS)
        assert text == tokenizer.decode(answer.tokens[:end], skip_special_tokens=True), name
    assert "36000 parameters in float32, linear modules in nf4" in pod.log
