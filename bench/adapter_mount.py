"""How long an adapter takes to mount that lies in the page cache, beside `peft`'s load_adapter of the same files.

One process, one model (66 million parameters, float32), one run: each round mounts the same adapter here and in PEFT,
one after the other, with as many mounted before it as the row says. `mount` is all that the engine does: read, check,
compile, try it on the model, publish. `fetch` is what the pod does before that for a new digest: copy into the cache
and hash.

    python bench/adapter_mount.py [--mounted 1 8 32 128] [--rounds 15] [--profile]
"""

from __future__ import annotations

import argparse
import cProfile
import gc
import hashlib
import pstats
import shutil
import statistics
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import torch
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.engine import Engine
from graft_runtime.engine.loader import Loader
from graft_runtime.messages import Mount, Mounted, Start, Unmount
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import LlamaConfig, LlamaForCausalLM

VARIANTS = 4
LIMITS = EngineConfig(max_sequences=8, max_sequence_length=1024, max_mounted_adapters=1024, max_rank=64)
"""Different adapters on the disk; they take turns."""
PEFT_UP_TO = 32
"""PEFT takes minutes to have more loaded."""


def make_files(root: Path, variants: int = VARIANTS) -> tuple[Path, list[Path]]:
    """A Llama of 66 million parameters, and adapters of rank 16 on its 56 linear modules of 5.9 MB each."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32_000, hidden_size=512, intermediate_size=2048, num_hidden_layers=8, num_attention_heads=8
    )
    LlamaForCausalLM(config).save_pretrained(root / "base")
    adapters = []
    for variant in range(variants):
        model = LlamaForCausalLM.from_pretrained(root / "base")
        lora = LoraConfig(r=16, lora_alpha=32, target_modules="all-linear", init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(root / f"adapter-{variant}")
        adapters.append(root / f"adapter-{variant}")
    return root / "base", adapters


class Here:
    """Our engine, its loader driven by hand."""

    def __init__(self, base: Path) -> None:
        loader = Loader()
        self._engine = Engine(lambda job: self._engine.handle(loader.do(job)))
        self._engine.handle(Start(str(base), "base", "float32", LIMITS))
        self._engine.step()
        self.mounted = 0

    def mount(self, adapter: Path) -> str:
        digest = f"{self.mounted}"
        self._engine.handle(Mount(digest, str(adapter), adapter.name))
        (event,) = self._engine.step()
        assert isinstance(event, Mounted), event
        self.mounted += 1
        return digest

    def unmount(self, digest: str) -> None:
        self._engine.handle(Unmount(digest))
        self._engine.step()
        self.mounted -= 1


class Theirs:
    """A PeftModel of the same base."""

    def __init__(self, base: Path, first: Path) -> None:
        self._model = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(base), first)
        self.mounted = 1

    def mount(self, adapter: Path) -> str:
        name = f"a{self.mounted}"
        self._model.load_adapter(adapter, name)
        self.mounted += 1
        return name

    def unmount(self, name: str) -> None:
        self._model.delete_adapter(name)
        self.mounted -= 1


@contextmanager
def quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def timed(act: Callable[[], Any]) -> tuple[float, Any]:
    """Milliseconds, and what came of it. The collector runs before, not in between."""
    gc.collect()
    gc.disable()
    started = time.perf_counter()
    result = act()
    took = 1000 * (time.perf_counter() - started)
    gc.enable()
    return took, result


def fetch(adapter: Path, cache: Path) -> str:
    """Copies and hashes, as the cache does."""
    digest = hashlib.sha256()
    shutil.rmtree(cache, ignore_errors=True)
    cache.mkdir()
    for file in sorted(adapter.iterdir()):
        with file.open("rb") as source, (cache / file.name).open("wb") as target:
            while chunk := source.read(1 << 20):
                digest.update(chunk)
                target.write(chunk)
    return digest.hexdigest()


def row(samples: list[float]) -> str:
    """Median, and the fastest and the slowest of ten."""
    low, high = statistics.quantiles(samples, n=10)[0], statistics.quantiles(samples, n=10)[-1]
    return f"{statistics.median(samples):8.1f} ({low:.1f} … {high:.1f})"


def measure(counts: list[int], rounds: int) -> None:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        root = Path(scratch)
        base, adapters = make_files(root)
        here, theirs = Here(base), Theirs(base, adapters[0])
        print(f"threads {torch.get_num_threads()}, {rounds} rounds each; milliseconds: median (p10 … p90)")
        print(f"{'mounted':>8}  {'fetch':>24}  {'mount':>24}  {'load_adapter':>24}  ratio")
        for count in counts:
            with_peft = count <= PEFT_UP_TO
            for side in (here, theirs) if with_peft else (here,):
                while side.mounted < count:
                    side.mount(adapters[side.mounted % VARIANTS])
            times: dict[str, list[float]] = {"fetch": [], "mount": [], "peft": []}
            for turn in range(rounds + 1):
                adapter = adapters[turn % VARIANTS]
                one: dict[str, float] = {"fetch": timed(partial(fetch, adapter, root / "cache"))[0]}
                one["mount"], digest = timed(partial(here.mount, adapter))
                here.unmount(digest)
                if with_peft:
                    one["peft"], name = timed(partial(theirs.mount, adapter))
                    theirs.unmount(name)
                if turn:  # the first warms up
                    for what, took in one.items():
                        times[what].append(took)
            ratios = [slow / fast for slow, fast in zip(times["peft"], times["mount"], strict=False)]
            told = f"{row(times['peft']):>24}  {row(ratios)}" if ratios else f"{'-':>24}  -"
            print(f"{count:>8}  {row(times['fetch']):>24}  {row(times['mount']):>24}  {told}", flush=True)


def profile() -> None:
    with tempfile.TemporaryDirectory() as scratch, quiet():
        base, adapters = make_files(Path(scratch))
        here = Here(base)
        here.mount(adapters[0])
        profiler = cProfile.Profile()
        for turn in range(20):
            profiler.enable()
            digest = here.mount(adapters[turn % VARIANTS])
            profiler.disable()
            here.unmount(digest)
        pstats.Stats(profiler).sort_stats("tottime").print_stats(35)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mounted", type=int, nargs="+", default=[1, 8, 32, 128], help="adapters mounted before")
    parser.add_argument("--rounds", type=int, default=15, help="mounts for each of them")
    parser.add_argument("--profile", action="store_true", help="say where our own time goes instead")
    arguments = parser.parse_args()
    if arguments.profile:
        profile()
    else:
        measure(arguments.mounted, arguments.rounds)


if __name__ == "__main__":
    main()
