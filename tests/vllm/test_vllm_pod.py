"""A real pod on vLLM: PEFT's answers alone and mixed, and a name that moves to other bytes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import openai
import pytest
from graft_runtime.contract.config import EngineConfig
from graft_runtime.contract.status import AdapterState
from safetensors.torch import load_file

from tests.support.methods import save_method
from tests.support.oracle import Oracle
from tests.support.vllm_engine import START_SECONDS
from tests.support.waiting import wait_until

pytestmark = pytest.mark.timeout(1500)
PROMPTS = ["hello", "the quick brown fox", "1, 2, 3,"]
COUNT = 16
MOUNT_SECONDS = 240.0
"""For a set of adapters, each of which is compiled, loaded and tried."""


@pytest.fixture(scope="module")
def adapters(
    base: Path, tmp_path_factory: pytest.TempPathFactory, make_adapter: Callable[..., Path]
) -> dict[str, Path]:
    """What vLLM computes as it is, and what it computes as normal forms only; `second` comes later, under any name."""
    directory = tmp_path_factory.mktemp("methods")
    loha = {"r": 3, "alpha": 5, "target_modules": ["q_proj", "up_proj"]}
    return {
        "plain": make_adapter("plain", base=base),
        "rslora": make_adapter("rslora", base=base, use_rslora=True, r=2, rank_pattern={"down_proj": 6}),
        "embedded": make_adapter("embedded", base=base, target_modules=["embed_tokens", "lm_head", "v_proj"]),
        "loha": save_method(base, directory / "loha", "LoHaConfig", loha, seed=1),
        "second": make_adapter("second", base=base),
    }


SERVED = ["plain", "rslora", "embedded", "loha"]


@pytest.fixture(scope="module")
def expected(base: Path, adapters: dict[str, Path]) -> Callable[..., str]:
    """`expected(model, prompt, count=COUNT)`: what Transformers and PEFT answer, greedily, in float32."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base)
    lora, loha = Oracle(base), Oracle(base)  # PEFT holds adapters of one method at a time
    for name, directory in adapters.items():
        (loha if name == "loha" else lora).load(directory, name)

    def answer(model: str, prompt: str, count: int = COUNT) -> str:
        oracle, name = (loha if model == "loha" else lora), (None if model == "tiny" else model)
        made = oracle.answer(tokenizer(prompt)["input_ids"], name, tokens=count)
        return str(tokenizer.decode(made.tokens, skip_special_tokens=True))

    return answer


@pytest.fixture(scope="module")
def pod(make_vllm_pod: Callable[..., Any], adapters: dict[str, Path]) -> Any:
    pod, engine = make_vllm_pod(engine=EngineConfig(max_sequences=8, max_rank=16, max_mounted_adapters=6))
    pod.mount_set(pod.set_of(1, *(pod.entry(name, adapters[name]) for name in SERVED)))
    pod.start("--engine-socket", str(engine.socket))
    try:
        pod.wait_ready(START_SECONDS)
    except AssertionError as error:
        raise AssertionError(engine.log) from error
    return pod


def next_set(pod: Any, *entries: Any) -> None:
    """Put a set of the next generation in force, and wait until each of its adapters serves or has failed."""
    reply = pod.push(pod.set_of(pod.status().adapter_set.generation + 1, *entries))
    assert reply.status == 200, reply.content
    settled = {AdapterState.MOUNTED, AdapterState.FAILED}
    wait_until(lambda: all(pod.report(entry.name).state in settled for entry in entries), pod.status, MOUNT_SECONDS)


def served(pod: Any, adapters: dict[str, Path], *more: Any) -> list[Any]:
    return [*(pod.entry(name, adapters[name]) for name in SERVED), *more]


def answer(pod: Any, model: str, prompt: str, count: int = COUNT) -> str:
    return str(pod.text(model, prompt=prompt, max_tokens=count, ignore_eos=True))


def test_alone_and_mixed_in_one_batch_each_name_answers_as_peft(pod: Any, base: Path, expected: Any) -> None:
    assert pod.status().base.runner.startswith("vllm ")
    count = sum(tensor.numel() for tensor in load_file(base / "model.safetensors").values())
    assert f"{count} parameters in float32" in pod.log
    work = [(model, prompt) for prompt in PROMPTS for model in ["tiny", *SERVED]]
    right = [expected(model, prompt) for model, prompt in work]
    assert len(set(right)) == len(right), "no two of them answer alike"
    assert [answer(pod, model, prompt) for model, prompt in work] == right
    for _ in range(2):
        with ThreadPoolExecutor(len(work)) as threads:
            assert list(threads.map(lambda item: answer(pod, *item), work)) == right


def test_openais_client_chats_and_streams_with_base_and_adapters(pod: Any) -> None:
    with openai.OpenAI(base_url=f"http://{pod.address}:8000/v1", api_key="none", max_retries=0) as client:
        texts = set()
        for model in ["tiny", *SERVED]:
            asked: dict[str, Any] = {
                "model": model,
                "messages": [{"role": "user", "content": "What is 7 × 6?"}],
                "max_tokens": COUNT,
                "temperature": 0,
            }
            whole = client.chat.completions.create(**asked).choices[0].message.content
            chunks = client.chat.completions.create(**asked, stream=True)
            assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
            texts.add(whole)
    assert len(texts) == len(SERVED) + 1


def test_a_name_moves_to_new_bytes_without_a_gap_and_no_answer_is_of_both(
    pod: Any, adapters: dict[str, Path], expected: Any
) -> None:
    """vLLM keeps keys and values by the name that an adapter is loaded under."""
    old, new = pod.entry("moving", adapters["plain"]), pod.entry("moving", adapters["second"])
    next_set(pod, *served(pod, adapters, old))
    moved, right = (
        threading.Event(),
        {
            (old.digest, expected("plain", PROMPTS[1])),
            (new.digest, expected("second", PROMPTS[1])),
        },
    )

    def ask() -> set[tuple[str, str]]:
        seen = set()
        while not moved.is_set():
            reply = pod.complete("moving", prompt=PROMPTS[1], max_tokens=COUNT, ignore_eos=True)
            assert reply.status == 200, reply.content
            seen.add((reply.headers["x-graft-adapter-digest"], reply.json["choices"][0]["text"]))
        return seen

    with ThreadPoolExecutor(2) as threads:
        asking = [threads.submit(ask) for _ in range(2)]
        next_set(pod, *served(pod, adapters, new))
        try:
            wait_until(lambda: pod.complete("moving").headers["x-graft-adapter-digest"] == new.digest)
        finally:
            moved.set()
        seen = set().union(*(future.result() for future in asking))
    assert seen <= right
    assert answer(pod, "moving", PROMPTS[1]) == expected("second", PROMPTS[1])
