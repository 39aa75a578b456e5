"""A catalogue that is far larger than what is mounted, under traffic that prefers some and forgets nobody."""

from __future__ import annotations

import hashlib
import random
import re
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from threading import Event
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import CheckpointFile, Source
from graft_runtime.contract.config import EngineConfig
from graft_runtime.store.checkpoints import digest_of

pytestmark = pytest.mark.timeout(300)

ADAPTERS = 500
PLACES = 16
CLIENTS = 12
REQUESTS = 400
PROMPTS = ["hello", "select * from users where id = 7"]
MOST_ASKED = 100
"""By one client of those that would never stop."""
TOKENS = 8
NEAR_TIE = 1e-4
LONGEST_SECONDS = 30.0
"""So long a request may wait for its adapter before it is told to come again."""


@dataclass
class Answered:
    name: str
    prompt: str
    seconds: float
    reply: Any


def write_adapters(like: Path, directory: Path, count: int) -> dict[str, Path]:
    """Adapters of the same shape as one that peft saved, with weights of their own."""
    import torch
    from safetensors.torch import load_file, save_file

    config = (like / "adapter_config.json").read_bytes()
    shapes = {name: tensor.shape for name, tensor in load_file(like / "adapter_model.safetensors").items()}
    generator, made = torch.Generator().manual_seed(0), {}
    for number in range(count):
        path = made[f"a{number:03}"] = directory / f"a{number:03}"
        path.mkdir()
        (path / "adapter_config.json").write_bytes(config)
        weights = {name: torch.randn(shape, generator=generator) * 0.3 for name, shape in shapes.items()}
        save_file(weights, path / "adapter_model.safetensors")
    return made


def digest(directory: Path) -> str:
    contents = {path.name: path.read_bytes() for path in directory.iterdir()}
    return digest_of(
        CheckpointFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in contents.items()
    )


@dataclass
class Catalogue:
    pod: Any
    directories: dict[str, Path]
    entries: dict[str, AdapterEntry]

    def ask(self, name: str, prompt: str, tokens: int = TOKENS) -> Answered:
        asked = time.monotonic()
        reply = self.pod.complete(name, prompt, max_tokens=tokens, seconds=2 * LONGEST_SECONDS)
        return Answered(name, prompt, time.monotonic() - asked, reply)

    def metric(self, name: str, tier: str) -> float:
        """Of a counter with the label `tier`."""
        text = self.pod.get("/metrics").content.decode()
        found = re.search(rf'^graft_{name}_total{{tier="{tier}"}} (\S+)$', text, re.MULTILINE)
        return float(found[1]) if found is not None else 0.0


@pytest.fixture(scope="module")
def catalogue(make_pod: Callable[..., Any], make_adapter: Callable[..., Path]) -> Catalogue:
    like = make_adapter("like", r=2, target_modules=["q_proj", "v_proj"])
    pod = make_pod(engine=EngineConfig(max_sequences=8, max_rank=4, max_mounted_adapters=PLACES))
    directories = write_adapters(like, pod.shelf, ADAPTERS)
    entries = {
        name: AdapterEntry(name=name, source=Source(uri=f"pvc://shelf/{name}"), digest=digest(path))
        for name, path in directories.items()
    }
    pod.mount_set(pod.set_of(1, *entries.values()))
    pod.start()
    pod.wait_ready(200)
    return Catalogue(pod, directories, entries)


@pytest.fixture
def right(tiny_base: Path, catalogue: Catalogue, make_oracle: Any) -> Callable[[list[Answered]], None]:
    """`right(answers)`: that each is what Transformers and PEFT say."""
    from transformers import AutoTokenizer

    tokenizer, oracle = AutoTokenizer.from_pretrained(tiny_base), make_oracle(tiny_base)
    oracle.load(next(iter(catalogue.directories.values())), "any")

    def check(answers: list[Answered]) -> None:
        for name, of_name in groupby(sorted(answers, key=lambda answer: answer.name), lambda answer: answer.name):
            oracle.replace(catalogue.directories[name], "any")
            for answer in of_name:
                expected = oracle.answer(tokenizer(answer.prompt)["input_ids"], "any", tokens=TOKENS)
                end = [*expected.tokens, tokenizer.eos_token_id].index(tokenizer.eos_token_id)
                text = answer.reply.json["choices"][0]["text"]
                assert (
                    text == tokenizer.decode(expected.tokens[:end], skip_special_tokens=True)
                    or min(expected.margins) < NEAR_TIE
                )
                assert answer.reply.headers["x-graft-adapter-digest"] == catalogue.entries[name].digest

    return check


def zipf(count: int, seed: int) -> list[str]:
    """Names of adapters: a few of them often, and most of them rarely."""
    order = random.Random(seed)
    names = [f"a{number:03}" for number in order.sample(range(ADAPTERS), ADAPTERS)]
    return order.choices(names, [1 / rank for rank in range(1, ADAPTERS + 1)], k=count)


def test_every_adapter_of_a_large_catalogue_answers_for_itself(
    catalogue: Catalogue, right: Callable[[list[Answered]], None]
) -> None:
    work = [(name, PROMPTS[number % 2]) for number, name in enumerate(zipf(REQUESTS, seed=1))]
    before = {tier: catalogue.metric("adapter_hits", tier) for tier in ("device", "host", "disk")}
    with ThreadPoolExecutor(CLIENTS) as clients:
        answers = list(clients.map(lambda one: catalogue.ask(*one), work))
    for answer in answers:
        assert answer.reply.status in {200, 503}, answer.reply.content
        assert answer.reply.status == 200 or answer.reply.headers["retry-after"]
        assert answer.seconds < LONGEST_SECONDS
    served = [answer for answer in answers if answer.reply.status == 200]
    right(served)
    assert len({answer.name for answer in served}) > 5 * PLACES
    hits = {tier: catalogue.metric("adapter_hits", tier) - count for tier, count in before.items()}
    assert sum(hits.values()) == len(served)
    assert min(hits["device"], hits["host"]) > 0
    assert catalogue.metric("adapter_evictions", "device") > ADAPTERS - PLACES
    listed = catalogue.pod.get("/v1/adapters").json["data"]
    assert sum(adapter["tier"] == "device" for adapter in listed) <= PLACES
    assert {adapter["tier"] for adapter in listed} == {"device", "host"}


def test_adapters_that_are_always_in_use_make_way(
    catalogue: Catalogue, right: Callable[[list[Answered]], None]
) -> None:
    """Three clients for each place keep its adapter in use without a pause; others get their turn all the same."""
    names = sorted(catalogue.directories)
    hot, cold, done = names[:PLACES], names[-3:], Event()

    def insist(name: str, tokens: int) -> list[Answered]:
        answers: list[Answered] = []
        while not done.is_set() and len(answers) < MOST_ASKED:
            answers.append(catalogue.ask(name, PROMPTS[0], tokens))
        return answers

    with ThreadPoolExecutor(3 * PLACES) as clients:
        insisting = [clients.submit(insist, name, tokens) for tokens in (20, 35, 50) for name in hot]
        try:
            answers = [catalogue.ask(name, PROMPTS[1]) for name in cold]
        finally:
            done.set()
    everything = answers + [answer for client in insisting for answer in client.result()]
    assert {answer.reply.status for answer in everything} == {200}
    assert max(answer.seconds for answer in everything) < LONGEST_SECONDS
    right(answers)
