"""Faults of the device, adapters that leave it and come back, and what a step makes the host wait for."""

from __future__ import annotations

import subprocess
import sys
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import Generate, Mount, Sampling, ServedAdapter, Unmount

WAITS = 4
"""Of the host in a step that decodes."""


def greedy(request: str, digest: str | None, tokens: int = 16) -> Generate:
    served = (ServedAdapter(digest, 1.0),) if digest else ()
    return Generate(request, [256, *request.encode(), *b" says hello"], tokens, served, Sampling(temperature=0))


def test_the_base_is_on_the_device(tiny_base: Path, in_process: Any) -> None:
    assert in_process(tiny_base).engine.serving.base.device.type == "cuda"


BROKEN = """
import sys, torch
from pathlib import Path
from graft_runtime.engine.engine import EngineBrokenError
from graft_runtime.messages import Generate, Sampling
from tests.support.engine import InProcessEngine

engine = InProcessEngine(Path(sys.argv[1]))
model = engine.engine.serving.base.model
index = torch.tensor([5], device="cuda")
model.register_forward_pre_hook(lambda *_: torch.zeros(1, device="cuda")[index].sum() and None)
engine.handle(Generate("1", [1, 2, 3], 4, (), Sampling(temperature=0)))
try:
    engine.step()
except EngineBrokenError as error:
    print("broken:", type(error.__cause__).__name__)
"""


def test_an_error_of_the_device_ends_the_engine(tiny_base: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BROKEN, tiny_base], capture_output=True, text=True, check=False)
    assert "broken: AcceleratorError" in done.stdout, done.stdout + done.stderr


def test_an_adapter_comes_back_from_host_memory(tiny_base: Path, make_adapter: Any, in_process: Any) -> None:
    engine, adapter = in_process(tiny_base), make_adapter("one")
    engine.mount("one", adapter)
    before = engine.answers([greedy("1", "one")])["1"]
    engine.handle(Unmount("one", keep=True))
    assert [event.tier for event in engine.step()] == ["host"]
    engine.handle(Mount("one", str(adapter), "one"))
    assert [event.tier for event in engine.step()] == ["host"]
    assert engine.answers([greedy("1", "one")])["1"] == before


@pytest.mark.parametrize("adapters", [0, 3])
def test_a_step_waits_for_the_device_a_few_times_only(
    tiny_base: Path, make_adapter: Any, in_process: Any, adapters: int
) -> None:
    engine = in_process(tiny_base)
    for number in range(adapters):
        engine.mount(str(number), make_adapter(str(number)))
    for number in range(8):
        engine.handle(greedy(f"request {number}", str(number % adapters) if adapters else None))
    for _ in range(5):
        engine.step()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        engine.step()
        torch.cuda.set_sync_debug_mode("default")
    lines = Counter(f"{Path(said.filename).name}:{said.lineno}" for said in caught)
    assert sum(lines.values()) <= WAITS, lines
    engine.collect([])
