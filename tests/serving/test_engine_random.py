"""Model checking by chance: adapters come, change, rescale, go, and displace each other under requests that come, run
and are cancelled.

The store (which adapter is where) and the engine (what runs) work together as in a pod. Each answer is compared with an
oracle, Transformers and PEFT, that runs one request at a time. Memory, bank, steps, places and tiers are made so small
that requests wait for each other, move and are pushed back, and adapters are evicted and mounted again all the time.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.facts import DeltaKind
from graft_runtime.contract.tasks import Task
from graft_runtime.engine.budgets import Budgets
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    BaseLoaded,
    Cancel,
    Capabilities,
    Dropped,
    Generate,
    Generated,
    Mounted,
    Occupancy,
    Sampling,
    StepDone,
    Unmounted,
)
from graft_runtime.pod import catalogue as catalogue_module
from graft_runtime.pod.hot import HotAdapters
from graft_runtime.pod.leases import Lease
from graft_runtime.pod.mounting import Mounting
from graft_runtime.pod.preparations import Preparations
from graft_runtime.runners.decoder.pages import PAGE
from graft_runtime.store.cache import Cached

from tests.support.threads import run_at_once

TOKENS = 14
OPERATIONS = 150
SEEDS = 4
NAMES = ("red", "green", "blue", "grey")
VERSIONS = 2
PLACES = 2
HOST_BYTES = 16_000
SCALES = (1.0, 0.5, -0.75)
PROMPTS = [
    [256, *b"hi"],
    [256, *b"select * from users where id = 7 and name = 'x' or 1 = 1"],
    [256, 5],
    [256, *b"to be" * 14],
]


class Fetches:
    """Everything is in the cache already."""

    def __init__(self, versions: dict[str, Path]) -> None:
        self._versions = versions

    async def fetch_until_there(self, source: Source, kind: str, digest: str, name: str, failed: Any) -> Cached:
        return Cached(digest, self._versions[digest], 1)


@dataclass
class Asked:
    prompt: list[int]
    name: str | None
    tokens: int
    lease: Lease | None = None
    task: asyncio.Task[None] | None = None
    said: list[int] = field(default_factory=list)
    ended: bool = False
    cancelled: bool = False

    @property
    def over(self) -> bool:
        return self.ended or self.cancelled

    def end(self) -> None:
        if self.lease is not None:
            self.lease.release()


MODEL_VOCABULARY = 320


async def no_tokenizer(cached: Any, name: str) -> None:
    """None of these adapters brings its own."""


class World:
    """A store and an engine, and what must be true of them."""

    def __init__(self, engine: Any, versions: dict[str, Path], oracle: Any, seed: int) -> None:
        self.engine, self.versions, self.oracle = engine, versions, oracle
        self.jobs = engine.load_later = list[Any]()
        self.random = random.Random(seed)
        fetches: Any = Fetches(versions)
        mounting = Mounting(Preparations(fetches, no_tokenizer, max_rank=16), engine.handle, PLACES)
        self.store = HotAdapters(mounting, drain_seconds=1000, changed=lambda name: None)
        self.store.base_loaded(
            BaseLoaded(
                "decoder",
                64,
                MODEL_VOCABULARY,
                1,
                "float32",
                Task.CAUSAL_LM,
                Capabilities(frozenset(DeltaKind), weights=True, adapters_per_request=4),
            )
        )
        self.entries: dict[str, AdapterEntry] = {}
        self.generation = 0
        self.asked: dict[str, Asked] = {}
        self.seen: Counter[str] = Counter()

    async def run(self) -> None:
        sets = [self.point, self.point, self.rescale, self.pin, self.remove]
        moves: list[Callable[[], None]] = sets + [self.cancel] + [self.load] * 4 + [self.submit] * 6 + [self.step] * 8
        for _ in NAMES:
            self.point()
        for _ in range(OPERATIONS):
            self.random.choice(moves)()
            await self.settle()
            self.check_tiers()
        await self.finish(lambda: all(asked.over for asked in self.asked.values()))
        self.entries.clear()
        self.apply()
        await self.finish(lambda: not self.store.digests)
        bank, mounts = self.engine.engine.serving.runner.bank, self.engine.engine.mounts
        assert (bank.active, mounts.digests, mounts.host.bytes) == (0, frozenset(), 0)
        assert not any(tensor.any() for module in bank.modules.values() for tensor in module.columns)
        for asked in self.asked.values():
            self.check(asked)

    async def finish(self, done: Callable[[], bool]) -> None:
        for _ in range(2000):
            self.load()
            self.step()
            await self.settle()
            self.check_tiers()
            if done() and not self.engine.engine.busy:
                return
        raise AssertionError("it does not come to an end")

    async def settle(self) -> None:
        """Until every task that can go on has gone on."""
        for _ in range(12):
            await asyncio.sleep(0)

    # what the operator does

    def apply(self) -> None:
        self.generation += 1
        entries = tuple(self.entries.values())
        self.store.apply(AdapterSet(pool_uid="p", config_hash="c", generation=self.generation, adapters=entries))

    def point(self) -> None:
        """New bytes under an old name are a new digest; the old one leaves when its requests have."""
        name = self.random.choice(NAMES)
        digest = digest_of(name, self.random.randrange(VERSIONS))
        source, scale = Source(uri=f"pvc://shelf/{digest}"), self.random.choice(SCALES)
        self.entries[name] = AdapterEntry(name=name, source=source, digest=digest, scale=scale)
        self.apply()

    def rescale(self) -> None:
        self.change("scale", self.random.choice(SCALES))

    def pin(self) -> None:
        """One at a time: a place must be left for the others."""
        for name, entry in self.entries.items():
            self.entries[name] = entry.model_copy(update={"pinned": False})
        self.change("pinned", self.random.random() < 0.3)

    def change(self, what: str, value: Any) -> None:
        if self.entries:
            name = self.random.choice(sorted(self.entries))
            self.entries[name] = self.entries[name].model_copy(update={what: value})
            self.apply()

    def remove(self) -> None:
        if self.entries:
            del self.entries[self.random.choice(sorted(self.entries))]
            self.apply()

    # what clients do

    def submit(self) -> None:
        name = self.random.choice([None, *sorted(self.entries)])
        request = str(len(self.asked))
        asked = Asked(self.random.choice(PROMPTS), name, self.random.randint(1, TOKENS))
        self.asked[request] = asked
        asked.task = asyncio.create_task(self.ask(request, asked))

    async def ask(self, request: str, asked: Asked) -> None:
        if asked.name is not None:
            try:
                (asked.lease,) = await self.store.acquire([asked.name], 1000)
            except GraftError as error:
                if (error.code, asked.name in self.entries) != (ErrorCode.UNKNOWN_MODEL, False):
                    raise
                asked.cancelled = True
                return
            assert asked.lease.digest in {digest_of(asked.name, version) for version in range(VERSIONS)}
        served = (asked.lease.served,) if asked.lease is not None else ()
        self.engine.handle(Generate(request, asked.prompt, asked.tokens, served, Sampling(temperature=0)))

    def cancel(self) -> None:
        going = [request for request, asked in self.asked.items() if not asked.over]
        if going:
            request = self.random.choice(going)
            asked = self.asked[request]
            asked.cancelled = True
            if asked.task is not None:
                asked.task.cancel()
            self.engine.handle(Cancel(request))
            asked.end()

    # what the engine does

    def load(self) -> None:
        if self.jobs:
            self.engine.handle(self.engine.loader.do(self.jobs.pop(0)))

    def step(self) -> None:
        for event in self.engine.step():
            match event:
                case Generated():
                    asked = self.asked[event.request]
                    assert event.fault is None, event.fault
                    assert not asked.ended
                    asked.said += event.tokens
                    asked.ended = event.finish is not None
                    if asked.ended:
                        asked.end()
                case Mounted() | Unmounted() | Dropped():
                    self.seen[f"{type(event).__name__} {getattr(event, 'tier', '')}".strip()] += 1
                    self.store.on_event(event)
                case _:
                    assert isinstance(event, StepDone | Occupancy), event

    # what must be true

    def check_tiers(self) -> None:
        mounts = self.engine.engine.mounts
        host = mounts.host
        assert len(mounts.digests) <= PLACES
        assert host.bytes == sum(pack.bytes for pack in host.adapters.values()) <= host.room
        assert not mounts.digests & host.adapters.keys(), "in one or the other"

    def check(self, asked: Asked) -> None:
        assert asked.cancelled or len(asked.said) == asked.tokens
        served = asked.lease.served if asked.lease is not None else None
        how = {"scale": served.weight if served is not None else 1.0, "tokens": TOKENS}
        self.oracle.check(asked.said, asked.prompt, served.digest if served is not None else None, **how)


def digest_of(name: str, version: int) -> str:
    return "sha256:" + hashlib.sha256(f"{name}-{version}".encode()).hexdigest()


@pytest.fixture
def make_world(in_process: Any, monkeypatch: pytest.MonkeyPatch) -> Callable[..., World]:
    """`make_world(base, versions, oracle, seed, pages)`, with too little of everything."""
    run_at_once(monkeypatch)

    def make(base: Path, versions: dict[str, Path], oracle: Any, seed: int, *, pages: bool) -> World:
        monkeypatch.setattr(catalogue_module, "PATIENCE_SECONDS", float(seed % 2))  # every other time nobody has any
        # Not all adapters at once in the bank.
        budgets = Budgets(bank_columns=8, pages=pages, prompt_tokens=32, host_bytes=HOST_BYTES)
        engine = in_process(base, budgets, max_sequences=6, max_mounted_adapters=PLACES, max_rank=8)
        if pages:
            runner_of(engine).kv.reserve(3 * PAGE)  # of 6 pages, one a sequence
        elif runner_of(engine).name == "decoder":
            runner_of(engine).kv.tokens = 3 * 128
        return World(engine, versions, oracle, seed)

    return make


def runner_of(engine: Any) -> Any:
    return engine.engine.serving.runner


@pytest.mark.parametrize(
    ("family", "pages"),
    [("llama", False), ("gemma3", False), ("gemma3", True), ("bloom", False)],
    ids=["llama", "gemma3", "gemma3-pages", "bloom"],
)
async def test_whatever_happens_each_answer_is_its_own(
    family: str, make_base: Any, make_adapter: Any, make_world: Any, make_oracle: Any, *, pages: bool
) -> None:
    base = make_base(family)
    oracle, versions = make_oracle(base), {}
    for name in NAMES:
        for version in range(VERSIONS):
            digest = digest_of(name, version)
            versions[digest] = make_adapter(f"{name}-{version}", base=base, r=2 + 2 * version)
            oracle.load(versions[digest], digest)
    seen: Counter[str] = Counter()
    for seed in range(SEEDS):
        world = make_world(base, versions, oracle, seed, pages=pages)
        runner = runner_of(world.engine)
        await world.run()
        seen += world.seen
        if pages:
            assert runner.kv.reserved == 3 * PAGE
        elif runner.name == "decoder":
            assert (runner.kv.extents, runner.kv.held) == (0, 0)
    assert min(seen[kind] for kind in ("Mounted disk", "Mounted host", "Unmounted host", "Dropped")) > 3, seen
