"""The engine without HTTP and without a pod, in a process of its own; also the memory's bandwidth as it reads it.

    python bench/engine_alone.py --model DIRECTORY

It reads one JSON object a line: {"prompts": [[token ids] …], "tokens": n} is answered with tokens a second of the base,
greedy, all at once; {"bytes": n} with the bytes a second that reading so many takes. It ends with its input.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import time
from pathlib import Path
from typing import Any

import graft_runtime.engine.__main__  # noqa: F401 - sets what the engine's process has in its environment
import torch
from driven_engine import GREEDY, DrivenEngine
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine.loader import Loader
from graft_runtime.messages import Start

READS = 5


def run(engine: DrivenEngine, prompts: list[list[int]], tokens: int) -> float:
    """Return the tokens a second of these answers."""
    started = time.perf_counter()
    for number, prompt in enumerate(prompts):
        engine.submit(str(number), prompt, tokens, (), GREEDY)
    answers = engine.drain()
    return sum(map(len, answers.values())) / (time.perf_counter() - started)


def bandwidth(size: int) -> float:
    """Return the bytes a second of the fastest of a few reads of a large tensor."""
    values = torch.ones(size // 4, dtype=torch.int32)
    best = float("inf")
    for _ in range(READS):
        started = time.perf_counter()
        values.max()
        best = min(best, time.perf_counter() - started)
    return values.nbytes / best


def main() -> None:
    """Answer lines until there are no more."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="directory of the base")
    parser.add_argument("--limits", type=EngineConfig.model_validate_json, required=True, help="JSON")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    engine = DrivenEngine(Loader(), Start(str(arguments.model), "base", "auto", arguments.limits))
    print(json.dumps({"threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        asked: dict[str, Any] = json.loads(line)
        found = bandwidth(asked["bytes"]) if "bytes" in asked else run(engine, asked["prompts"], asked["tokens"])
        print(json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
