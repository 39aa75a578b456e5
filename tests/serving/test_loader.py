"""The loader beside the steps: what takes long is in nobody's way, the shortest is next, nothing takes for ever."""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.engine.loader import LONG_WORK, AdapterReady, Loader, LoaderThreads
from graft_runtime.messages import Mount, MountFailed

WAIT_SECONDS = 30


@dataclass
class Sized:
    work: int
    bytes: int = 0

    @property
    def parts(self) -> list[SimpleNamespace]:
        return [SimpleNamespace(work=self.work)]


class ByHand(Loader):
    """A loader of adapters of given sizes, each of which is loaded once it is let go."""

    def __init__(self, sizes: dict[str, Sized]) -> None:
        super().__init__()
        self.sizes = sizes
        self.let_go = {name: threading.Event() for name in sizes}
        self.begun: queue.SimpleQueue[str] = queue.SimpleQueue()

    def read(self, mount: Mount) -> Any:
        return self.sizes[mount.name]

    def load(self, mount: Mount, files: Any) -> Any:
        self.begun.put(mount.name)
        assert self.let_go[mount.name].wait(WAIT_SECONDS)
        return mount.name


def test_what_takes_long_is_in_nobody_s_way() -> None:
    loader = ByHand({"pissa": Sized(LONG_WORK + 1), "plain": Sized(0), "dora": Sized(LONG_WORK)})
    done = queue.SimpleQueue[Any]()
    threads = LoaderThreads(done.put, loader)
    threads.submit(Mount("pissa", "", "pissa"))
    assert loader.begun.get(timeout=WAIT_SECONDS) == "pissa"
    for name in ("plain", "dora"):
        threads.submit(Mount(name, "", name))
        loader.let_go[name].set()
    assert [done.get(timeout=WAIT_SECONDS) for _ in range(2)] == ["plain", "dora"]
    loader.let_go["pissa"].set()
    assert done.get(timeout=WAIT_SECONDS) == "pissa"


def test_the_shortest_is_next() -> None:
    sizes = {"first": Sized(0, 9), "large": Sized(0, 8), "worked": Sized(5, 1), "small": Sized(0, 2)}
    loader, done = ByHand(sizes), queue.SimpleQueue[Any]()
    threads = LoaderThreads(done.put, loader)
    threads.submit(Mount("first", "", "first"))
    assert loader.begun.get(timeout=WAIT_SECONDS) == "first"
    for name in ("worked", "large", "small"):
        threads.submit(Mount(name, "", name))
    for event in loader.let_go.values():
        event.set()
    assert [done.get(timeout=WAIT_SECONDS) for _ in sizes] == ["first", "small", "large", "worked"]


def test_no_adapter_takes_for_ever(in_process: Any, tiny_base: Path, make_adapter: Any) -> None:
    base = in_process(tiny_base).engine.serving.base
    mount = Mount("sql", str(make_adapter("sql", init_lora_weights="pissa")), "sql")
    outcome = Loader(base, max_rank=16, seconds=-1).do(mount)
    assert isinstance(outcome, MountFailed)
    assert (outcome.fault.code, "path_initial_model" in outcome.fault.error().message) == ("TooCostly", True)
    assert isinstance(Loader(base, max_rank=16).do(mount), AdapterReady)


@pytest.mark.parametrize(("options", "times"), [({}, 0), ({"use_dora": True}, 8), ({"init_lora_weights": "pissa"}, 20)])
def test_the_work_of_an_adapter_is_told_by_its_header(make_adapter: Any, options: dict[str, Any], times: int) -> None:
    files = read_adapter_files(make_adapter("sql", r=8, **options), name="sql", max_rank=64)
    for part in files.parts:
        inputs, outputs = part.tensors["lora_A"].shape[1], part.tensors["lora_B"].shape[0]
        fewer = min(inputs, outputs) if times == 20 else 1
        assert part.work == times * inputs * outputs * fewer
