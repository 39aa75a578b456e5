"""How many tokens a second a batch makes whose requests name different adapters, beside `peft` with the same batch.

One process, one model (66 million parameters, float32), one run: each round asks the same requests here and of PEFT
(`generate(adapter_names=…)`), one after the other: 8 prompts of 32 tokens, 32 new tokens each, greedy. The answers are
compared as well.

    python bench/mixed_batch.py [--adapters 0 1 2 8] [--rounds 7]
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
import warnings
from pathlib import Path

import torch
from adapter_mount import make_files
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.engine import Engine
from graft_runtime.engine.loader import Loader
from graft_runtime.messages import Generate, Generated, Mount, Mounted, Sampling, ServedAdapter, Start
from peft import PeftModel
from transformers import LlamaForCausalLM

ROWS, PROMPT, ANSWER = 8, 32, 32
BASE = "__base__"
LIMITS = EngineConfig(max_sequences=16, max_sequence_length=1024, max_mounted_adapters=64, max_rank=16)
"""PEFT's name for no adapter."""

Tokens = list[list[int]]


def make_prompts() -> Tokens:
    chosen = random.Random(0)
    return [[chosen.randrange(3, 32_000) for _ in range(PROMPT)] for _ in range(ROWS)]


class Here:
    """Our engine."""

    def __init__(self, base: Path, adapters: list[Path]) -> None:
        loader = Loader()
        self._engine = Engine(lambda job: self._engine.handle(loader.do(job)))
        self._engine.handle(Start(str(base), "base", "float32", LIMITS))
        self._engine.step()
        for number, adapter in enumerate(adapters):
            self._engine.handle(Mount(str(number), str(adapter), adapter.name))
            (event,) = self._engine.step()
            assert isinstance(event, Mounted), event

    def answer(self, prompts: Tokens, adapters: list[int | None]) -> Tokens:
        for row, (prompt, adapter) in enumerate(zip(prompts, adapters, strict=True)):
            served = () if adapter is None else (ServedAdapter(str(adapter), 1.0),)
            self._engine.handle(Generate(str(row), prompt, ANSWER, served, Sampling(temperature=0)))
        answers: Tokens = [[] for _ in prompts]
        while self._engine.busy:
            for event in self._engine.step():
                if isinstance(event, Generated):
                    answers[int(event.request)] += event.tokens
        return answers


class Theirs:
    """A PeftModel of the same base."""

    def __init__(self, base: Path, adapters: list[Path]) -> None:
        model = LlamaForCausalLM.from_pretrained(base)
        model.generation_config.eos_token_id = None
        self._model = PeftModel.from_pretrained(model, adapters[0], adapter_name="0").eval()
        for number, adapter in enumerate(adapters[1:], start=1):
            self._model.load_adapter(adapter, str(number))

    @torch.inference_mode()
    def answer(self, prompts: Tokens, adapters: list[int | None]) -> Tokens:
        names = [BASE if adapter is None else str(adapter) for adapter in adapters]
        ids = torch.tensor(prompts)
        options = {"max_new_tokens": ANSWER, "do_sample": False, "pad_token_id": 0}
        made = self._model.generate(input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, **options)
        return [row[PROMPT:].tolist() for row in made]


def timed(side: Here | Theirs, prompts: Tokens, adapters: list[int | None]) -> tuple[float, Tokens]:
    """Tokens a second, and the answers."""
    started = time.perf_counter()
    answers = side.answer(prompts, adapters)
    return sum(map(len, answers)) / (time.perf_counter() - started), answers


def row(samples: list[float]) -> str:
    """Median, and the least and the most."""
    return f"{statistics.median(samples):8.1f} ({min(samples):.1f} … {max(samples):.1f})"


def measure(counts: list[int], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        base, adapters = make_files(Path(scratch), variants=max(*counts, 1))
        here, theirs = Here(base, adapters), Theirs(base, adapters)
        prompts = make_prompts()
        print(f"threads {torch.get_num_threads()}, {rounds} rounds; tokens a second: median (least … most)")
        print(f"{'adapters':>8}  {'here':>24}  {'peft':>24}  {'ratio':>24}  same answers")
        for count in counts:
            whose = [index % count if count else None for index in range(ROWS)]
            speeds: dict[str, list[float]] = {"here": [], "peft": []}
            for turn in range(rounds + 1):
                ours, mine = timed(here, prompts, whose)
                other, yours = timed(theirs, prompts, whose)
                if turn:  # the first warms up
                    speeds["here"].append(ours)
                    speeds["peft"].append(other)
            ratios = [ours / other for ours, other in zip(speeds["here"], speeds["peft"], strict=True)]
            alike = sum(one == two for one, two in zip(mine, yours, strict=True))
            told = "  ".join(f"{row(samples):>24}" for samples in (speeds["here"], speeds["peft"], ratios))
            print(f"{count:>8}  {told}  {alike} of {ROWS}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--adapters", type=int, nargs="+", default=[0, 1, 2, 8], help="that the requests take turns in")
    parser.add_argument("--rounds", type=int, default=7, help="of each")
    arguments = parser.parse_args()
    measure(arguments.adapters, arguments.rounds)


if __name__ == "__main__":
    main()
