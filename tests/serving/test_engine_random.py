"""Model checking by chance: adapters mount, change, rescale and leave under requests that come, run and are cancelled.

Each answer is compared with an oracle, Transformers and PEFT, that runs one request at a time. Memory, bank and steps
are made so small that requests wait for each other, move and are pushed back.
"""

from __future__ import annotations

import random
import warnings
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import (
    Cancel,
    Generated,
    Mount,
    Mounted,
    Occupancy,
    Sampling,
    ServedAdapter,
    StepDone,
    Submit,
    Unmount,
    Unmounted,
)

NEAR_TIE = 1e-4
TOKENS = 14
OPERATIONS = 150
NAMES = ("red", "green", "blue")
VERSIONS = 2
SCALES = (1.0, 0.5, -0.75)
PROMPTS = [
    [256, *b"hi"],
    [256, *b"select * from users where id = 7 and name = 'x' or 1 = 1"],
    [256, 5],
    [256, *b"to be" * 14],
]


class Oracle:
    """Transformers and PEFT, one request at a time."""

    def __init__(self, base: Path, versions: dict[str, Path]) -> None:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).eval()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            digests = iter(versions.items())
            digest, directory = next(digests)
            self._model = PeftModel.from_pretrained(model, directory, adapter_name=digest).eval()
            for digest, directory in digests:
                self._model.load_adapter(directory, adapter_name=digest)
        self._known: dict[tuple[tuple[int, ...], str | None, float], tuple[list[int], list[float]]] = {}

    def answer(self, prompt: list[int], digest: str | None, scale: float) -> tuple[list[int], list[float]]:
        """The tokens, and how far the best logit lies above the second at each."""
        key = (tuple(prompt), digest, scale)
        if key not in self._known:
            self._known[key] = self._generate(prompt, digest, scale)
        return self._known[key]

    @torch.no_grad()
    def _generate(self, prompt: list[int], digest: str | None, scale: float) -> tuple[list[int], list[float]]:
        from peft.helpers import rescale_adapter_scale

        self._model.set_adapter(digest or next(iter(self._model.peft_config)))
        with rescale_adapter_scale(self._model, scale if digest else 0.0):
            made = self._model.generate(
                input_ids=torch.tensor([prompt]),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
                max_new_tokens=TOKENS,
                do_sample=False,
                eos_token_id=None,
                pad_token_id=0,
                return_dict_in_generate=True,
                output_logits=True,
            )
        best = torch.stack([logits[0].topk(2).values for logits in made.logits])
        return made.sequences[0, len(prompt) :].tolist(), (best[:, 0] - best[:, 1]).tolist()


@dataclass
class Asked:
    prompt: list[int]
    digest: str | None
    scale: float
    tokens: int
    said: list[int] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False


class World:
    """The engine, and what must be true of it."""

    def __init__(self, engine: Any, versions: dict[str, Path], oracle: Oracle, seed: int) -> None:
        self.engine, self.versions, self.oracle = engine, versions, oracle
        self.random = random.Random(seed)
        self.serving: dict[str, tuple[str, float]] = {}
        self.mounted: set[str] = set()
        self.asked: dict[str, Asked] = {}

    def run(self) -> None:
        moves = [self.mount, self.rescale, self.unmount, self.cancel] + [self.submit] * 5 + [self.step] * 6
        for _ in range(OPERATIONS):
            self.random.choice(moves)()
        for digest in self.versions:
            self.engine.handle(Unmount(digest))
        while self.engine.engine.busy:
            self.step()
        assert not self.mounted, "everything has left"
        bank = self.engine.engine._serving.runner.bank
        assert bank.active == 0
        assert not any(tensor.any() for module in bank.modules.values() for tensor in (module.a, module.b))
        for asked in self.asked.values():
            assert asked.ended or asked.cancelled
            self.check(asked)

    def mount(self) -> None:
        """New bytes under an old name are a new digest; the old one leaves when its requests have."""
        name = self.random.choice(NAMES)
        digest = f"{name}-{self.random.randrange(VERSIONS)}"
        before = self.serving.get(name)
        self.engine.handle(Mount(digest, str(self.versions[digest]), name))
        self.serving[name] = (digest, self.random.choice(SCALES))
        if before is not None and before[0] != digest:
            self.engine.handle(Unmount(before[0]))

    def rescale(self) -> None:
        if self.serving:
            name = self.random.choice(sorted(self.serving))
            self.serving[name] = (self.serving[name][0], self.random.choice(SCALES))

    def unmount(self) -> None:
        if self.serving:
            digest, _ = self.serving.pop(self.random.choice(sorted(self.serving)))
            self.engine.handle(Unmount(digest))

    def submit(self) -> None:
        name = self.random.choice([None, *sorted(self.serving)])
        digest, scale = self.serving[name] if name else (None, 1.0)
        asked = Asked(self.random.choice(PROMPTS), digest, scale, self.random.randint(1, TOKENS))
        request = str(len(self.asked))
        self.asked[request] = asked
        served = (ServedAdapter(digest, scale),) if digest else ()
        self.engine.handle(Submit(request, asked.prompt, asked.tokens, served, Sampling(temperature=0)))

    def cancel(self) -> None:
        going = [name for name, asked in self.asked.items() if not asked.ended and not asked.cancelled]
        if going:
            name = self.random.choice(going)
            self.asked[name].cancelled = True
            self.engine.handle(Cancel(name))

    def step(self) -> None:
        for event in self.engine.step():
            if isinstance(event, Generated):
                asked = self.asked[event.request]
                assert event.fault is None, event.fault
                assert not asked.ended
                asked.said += event.tokens
                asked.ended = event.finish is not None
            elif isinstance(event, Mounted):
                self.mounted.add(event.digest)
            elif isinstance(event, Unmounted):
                self.mounted.discard(event.digest)
            else:
                assert isinstance(event, StepDone | Occupancy), event

    def check(self, asked: Asked) -> None:
        expected, margins = self.oracle.answer(asked.prompt, asked.digest, asked.scale)
        assert asked.cancelled or len(asked.said) == asked.tokens
        for mine, theirs, margin in zip(asked.said, expected, margins, strict=False):
            if mine != theirs:
                assert margin < NEAR_TIE, (asked, expected)
                return


@pytest.mark.parametrize("family", ["llama", "gemma3", "bloom"])
def test_whatever_happens_each_answer_is_its_own(
    family: str, make_base: Any, make_adapter: Any, in_process: Any
) -> None:
    base = make_base(family)
    versions = {
        f"{name}-{version}": make_adapter(f"{name}-{version}", base=base, r=2 + 2 * version)
        for name in NAMES
        for version in range(VERSIONS)
    }
    oracle = Oracle(base, versions)
    for seed in range(3):
        engine = in_process(base, max_sequences=6, max_mounted_adapters=len(versions))
        runner = engine.engine._serving.runner
        runner.bank._limit = 8  # not all adapters at once
        if runner.name == "decoder":
            runner.kv.tokens = 3 * 128
            engine.engine._serving.scheduler.flow._prompt_tokens = 32
        World(engine, versions, oracle, seed).run()
        if runner.name == "decoder":
            assert (runner.kv.extents, runner.kv.held) == (0, 0)
