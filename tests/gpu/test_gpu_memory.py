"""The memory of the device is never exceeded: requests wait for what there is."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import Generate, Sampling, ServedAdapter

MEBIBYTE = 1 << 20
REQUESTS, PROMPT, ANSWER = 96, 200, 90


@pytest.fixture(scope="module")
def wide_base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random Llama that keeps 64 KiB of a token."""
    import transformers

    directory = tmp_path_factory.mktemp("wide") / "base"
    config = transformers.LlamaConfig(
        vocab_size=320,
        hidden_size=256,
        intermediate_size=512,
        num_hidden_layers=4,
        num_attention_heads=16,
        num_key_value_heads=16,
        head_dim=128,
        max_position_embeddings=1024,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


@contextmanager
def only(free: int) -> Iterator[None]:
    """Leave so many bytes of the device free meanwhile."""
    ballast = torch.empty(torch.cuda.mem_get_info()[0] - free, dtype=torch.uint8, device="cuda")
    torch.cuda.reset_peak_memory_stats()
    try:
        yield
    finally:
        del ballast
        gc.collect()
        torch.cuda.empty_cache()


def requests(adapters: int) -> list[Any]:
    """Of the base and of the adapters in turns."""
    submits = []
    for number in range(REQUESTS):
        whose = number % (adapters + 1)
        served = (ServedAdapter(str(whose), 1.0),) if whose < adapters else ()
        prompt = [(number * 7 + at * at) % 320 for at in range(PROMPT)]
        submits.append(Generate(str(number), prompt, ANSWER, served, Sampling(temperature=0)))
    return submits


def test_a_device_that_is_full_serves_all_requests(wide_base: Path, make_adapter: Any, in_process: Any) -> None:
    adapters = [make_adapter(str(number), base=wide_base, r=16) for number in range(4)]
    with only(1536 * MEBIBYTE):
        free = torch.cuda.mem_get_info()[0]
        before = torch.cuda.memory_reserved()
        engine = in_process(wide_base)
        for number, adapter in enumerate(adapters):
            engine.mount(str(number), adapter)
        kv = engine.engine.serving.runner.kv
        assert kv.tokens < REQUESTS * 512, "not all fit at once, or nothing is tested"
        answers = engine.answers(requests(len(adapters)))
        assert [len(answers[str(number)]) for number in range(REQUESTS)] == [ANSWER] * REQUESTS
        assert torch.cuda.max_memory_reserved() - before <= free


def test_an_adapter_that_finds_no_room_is_refused_and_the_engine_goes_on(
    wide_base: Path, make_adapter: Any, in_process: Any
) -> None:
    adapter = make_adapter("large", base=wide_base, r=256)
    engine = in_process(wide_base, max_rank=256)
    total = torch.cuda.get_device_properties(0).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 24 * MEBIBYTE) / total)
    failed = engine.mount("large", adapter)
    assert failed.fault.code == "NoCapacity", failed
    torch.cuda.set_per_process_memory_fraction(1.0)
    assert engine.mount("large", adapter).facts.rank == 256
    submit = Generate("1", [1, 2, 3], 4, (ServedAdapter("large", 1.0),), Sampling(temperature=0))
    assert len(engine.answers([submit])["1"]) == 4
