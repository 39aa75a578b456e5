"""Whether the engine is right on this machine's GPU, how fast it is there, and what it spends a step on.

One command, under six minutes on one H100: ceilings of the device; five families of tiny models in float32 and bfloat16
against a CPU in float32; a Llama of the 8B's shape with random bfloat16 weights and eight adapters of rank 16 on all
linear modules: decoding, first tokens, prompts, mounts, kernels and waits of a step, memory. A part that fails prints
its traceback, the others go on; the exit status is 1 then, and when an answer is wrong.

    python bench/gpu.py [--device cuda] [--small] [--parts correct speed …] [--out docs/benchmarks.json]
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import platform
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import graft_runtime.engine.__main__  # noqa: F401 - sets what the engine's process has in its environment
import torch
import transformers
from driven_engine import BaseAtHand, DrivenEngine
from gpu_correct import check_families
from gpu_models import make_base, save_adapters
from gpu_profile import wait
from gpu_report import report
from gpu_speed import FULL, SMALL, Scale, Speed, spread
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.budgets import Budgets
from graft_runtime.messages import Start
from older_torch import STANDS_IN

MAX_SEQUENCES = 64
PARTS = ("correct", "decode", "first_token", "prefill", "mounting", "kernels")
Result = dict[str, Any]


def timed(act: Callable[[], Any], device: torch.device, rounds: int) -> list[float]:
    """Return the seconds of each round; the first warms up and is not among them."""
    times = []
    for _ in range(rounds + 1):
        wait(device)
        started = time.perf_counter()
        act()
        wait(device)
        times.append(time.perf_counter() - started)
    return times[1:]


def measure_ceilings(device: torch.device, *, small: bool) -> Result:
    """Measure the largest copy and matrix product: bytes read and written a second, and operations a second."""
    bytes_copied, side = (1 << 24, 512) if small else (4 << 30, 8192)
    source = torch.randint(0, 127, (bytes_copied,), dtype=torch.int8, device=device)
    target = torch.empty_like(source)
    copies = timed(lambda: target.copy_(source), device, 5)
    left, right = (torch.randn(side, side, dtype=torch.bfloat16, device=device) for _ in range(2))
    products = timed(lambda: left @ right, device, 5)
    return {
        "copy_bytes_per_second": spread([2 * bytes_copied / took for took in copies]),
        "matmul_bfloat16_per_second": spread([2 * side**3 / took for took in products]),
    }


def describe(device: torch.device) -> Result:
    """Return what ran where."""
    found: Result = {
        "device": platform.processor() or platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "tables_of_pages": not STANDS_IN,
    }
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        found |= {"device": properties.name, "bytes": properties.total_memory, "cuda": torch.version.cuda}
    return found


def forget_memory() -> None:
    """Give back what earlier parts had of the device's memory, and forget how much that was."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def memory_now() -> Result:
    """Return bytes of the device's memory: the most that tensors and the allocator had, and what is free now."""
    free, total = torch.cuda.mem_get_info()
    return {
        "peak_allocated": torch.cuda.max_memory_allocated(),
        "peak_reserved": torch.cuda.max_memory_reserved(),
        "free": free,
        "total": total,
    }


class _Ledger(logging.Handler):
    """Keeps what the ledger says in the log at boot."""

    def __init__(self) -> None:
        super().__init__(logging.INFO)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


class Run:
    """One run: parts that fail are told and don't stop the others."""

    def __init__(self, device: torch.device, scale: Scale, parts: tuple[str, ...]) -> None:
        self.device, self.scale, self.parts = device, scale, parts
        self.started = time.perf_counter()
        self.failed: list[str] = []
        self.result: Result = {"machine": describe(device), "small": scale.model is SMALL.model}

    def attempt(self, part: str, act: Callable[[], Any]) -> None:
        """Keep what the part finds."""
        if part in PARTS and part not in self.parts:
            return
        try:
            self.result[part] = act()
        except Exception:
            traceback.print_exc()
            self.failed.append(part)
        print(f"[{time.perf_counter() - self.started:6.1f} s] {part}", flush=True)

    def go(self) -> None:
        """Run all parts that were asked for."""
        self.attempt("ceilings", lambda: measure_ceilings(self.device, small=self.result["small"]))
        self.attempt("correct", self._correct)
        if set(self.parts) - {"correct"}:
            with tempfile.TemporaryDirectory() as scratch:
                self.attempt("speed", lambda: self._speed(Path(scratch)))
        self.result["seconds"] = time.perf_counter() - self.started

    def _correct(self) -> list[Result]:
        found = []
        for one in check_families():
            found.append(one)
            print(one, flush=True)
        if not all(one["right"] for one in found):
            self.failed.append("correct")
        return found

    def _speed(self, scratch: Path) -> Result:
        scale = self.scale
        forget_memory()
        ledger = _Ledger()
        logging.getLogger("graft_runtime").addHandler(ledger)
        base = make_base(scale.model, self.device)
        adapters = save_adapters(scratch, base.model, scale.ranks, size=0.1)
        limits = EngineConfig(max_sequences=MAX_SEQUENCES, max_mounted_adapters=2 * len(adapters))
        start = Start("", "bench", "bfloat16", limits)
        began = time.perf_counter()
        speed = Speed(DrivenEngine(BaseAtHand(base), start, Budgets(pages=True)), adapters, scale)
        started = time.perf_counter() - began
        bandwidth = self.result["ceilings"]["copy_bytes_per_second"]["value"]
        self.attempt("decode", lambda: speed.decode(bandwidth))
        self.attempt("first_token", speed.first_token)
        self.attempt("prefill", speed.prefill)
        self.attempt("mounting", speed.mounting)
        self.attempt("kernels", speed.kernels)
        weights = sum(parameter.nbytes for parameter in base.model.parameters())
        memory = memory_now() if self.device.type == "cuda" else {}
        found = {"parameters_bytes": weights, "start_seconds": started, "ledger": ledger.lines, "memory": memory}
        return found | speed.graphs()


def write(result: Result, out: Path) -> None:
    """Put the result into a JSON file, in the place of what stood under `gpu`."""
    known = json.loads(out.read_text()) if out.exists() else {}
    out.write_text(json.dumps(known | {"gpu": result}, indent=1) + "\n")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], help="by default a GPU if there is one")
    parser.add_argument("--small", action="store_true", help="a small model and few rounds: whether it all runs")
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS, help="what to measure")
    parser.add_argument("--rounds", type=int, help="of each measure; by default 3, small 2")
    parser.add_argument("--out", type=Path, help="a JSON file, whose key `gpu` is replaced")
    arguments = parser.parse_args()
    if arguments.device == "cpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the engine takes a GPU wherever it sees one
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if arguments.device not in (None, device.type):
        sys.exit("torch sees no GPU here; run this where `nvidia-smi` shows one, or with --device cpu")
    logging.basicConfig(level=logging.WARNING)
    logging.getLogger("graft_runtime").setLevel(logging.INFO)
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    scale = SMALL if arguments.small else FULL
    scale = replace(scale, rounds=arguments.rounds or scale.rounds)
    run = Run(device, scale, tuple(arguments.parts))
    run.go()
    print(report(run.result), flush=True)
    if arguments.out:
        write(run.result, arguments.out)
    if run.failed:
        sys.exit(f"failed: {', '.join(run.failed)}")


if __name__ == "__main__":
    main()
