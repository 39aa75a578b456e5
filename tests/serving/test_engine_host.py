"""Adapters that leave the device and come back: from host memory, without being compiled and tried again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.deltas import CompiledAdapter, LowRank, ModuleDelta
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.engine.host import HostMemory
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import (
    Dropped,
    Generate,
    Mount,
    Mounted,
    MountFailed,
    Sampling,
    ServedAdapter,
    Unmount,
    Unmounted,
)

CPU = torch.device("cpu")


def pack(columns: int = 1) -> CompiledAdapter:
    """Of 8 bytes a column."""
    facts = AdapterFacts(method="LORA", rank=columns, module_count=1, deltas=["LowRank"])
    return CompiledAdapter(facts, {"q": ModuleDelta(LowRank(torch.zeros(columns, 1), torch.zeros(columns, 1)))})


def test_what_came_first_goes_first_and_never_more_than_fits() -> None:
    host = HostMemory(24)
    assert [host.put(name, pack()) for name in "abc"] == [[], [], []]
    assert host.take("a") is not None
    assert host.put("a", pack()) == [], "it was used: it is the newest again"
    assert host.put("d", pack(2)) == ["b", "c"]
    assert ("a" in host.adapters, "d" in host.adapters, host.bytes) == (True, True, 24)
    assert host.put("e", pack(4)) == ["e"], "nobody goes for one that never fits"
    assert (host.take("b"), host.bytes) == (None, 24)


def test_where_the_device_is_the_host_nothing_is_copied() -> None:
    host, adapter = HostMemory(24), pack()
    host.put("a", adapter)
    kept = host.take("a")
    assert kept is not None
    assert kept.modules["q"].tensors[0] is adapter.modules["q"].tensors[0]


@pytest.fixture
def engine(tiny_base: Path, in_process: Any) -> Any:
    return in_process(tiny_base, max_mounted_adapters=1)


def greedy(request: str, digest: str) -> Generate:
    return Generate(request, [256, *b"hi"], 8, (ServedAdapter(digest, 1.0),), Sampling(temperature=0))


def events(engine: Any, *commands: Any) -> list[Any]:
    for command in commands:
        engine.handle(command)
    return [event for event in engine.step() if isinstance(event, Mounted | MountFailed | Unmounted | Dropped)]


def test_an_adapter_comes_back_without_being_compiled_or_tried(engine: Any, make_adapter: Any) -> None:
    one, two = make_adapter("one"), make_adapter("two")
    engine.mount("one", one)
    before = engine.answers([greedy("1", "one")])["1"]
    left, came = events(engine, Unmount("one", keep=True), Mount("two", str(two), "two"))
    assert (left, came.tier) == (Unmounted("one", "host"), "disk")
    engine.load_later = []
    steps = [events(engine, Unmount("two", keep=True), Mount("one", str(one), "one"))]
    assert [event.tier for event in steps[0]] == ["host", "host"]
    assert engine.load_later == []
    assert engine.answers([greedy("2", "one")])["2"] == before


def test_a_request_keeps_its_adapter_on_the_device(engine: Any, make_adapter: Any) -> None:
    engine.mount("one", make_adapter("one"))
    engine.handle(greedy("1", "one"))
    assert events(engine, Unmount("one", keep=True)) == []
    engine.collect([])
    assert "one" in engine.engine.mounts.host.adapters


def test_what_is_not_to_be_kept_is_forgotten_wherever_it_is(engine: Any, make_adapter: Any) -> None:
    host = engine.engine.mounts.host
    engine.mount("one", make_adapter("one"))
    assert events(engine, Unmount("one", keep=True), Unmount("one")) == [Unmounted("one", "host"), Unmounted("one")]
    engine.mount("one", make_adapter("one"))
    assert events(engine, Unmount("one")) == [Unmounted("one")]
    assert host.bytes == 0


def test_without_room_in_host_memory_it_is_on_disk_alone(engine: Any, make_adapter: Any) -> None:
    adapter = make_adapter("one")
    engine.engine.mounts.open(1 << 40, engine.mount("one", adapter).bytes, CPU)
    assert events(engine, Unmount("one", keep=True)) == [Unmounted("one", "host")]
    engine.mount("two", make_adapter("two", r=2))
    assert events(engine, Unmount("two", keep=True)) == [Dropped(["one"]), Unmounted("two", "host")]
    assert engine.mount("one", adapter).tier == "disk"
    engine.engine.mounts.open(1 << 40, 1, CPU)
    assert events(engine, Unmount("one", keep=True)) == [Unmounted("one", "disk")]


def test_a_device_without_room_fails_the_mount_and_the_adapter_stays_in_host_memory(
    engine: Any, make_adapter: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    adapter = make_adapter("one")
    engine.mount("one", adapter)
    events(engine, Unmount("one", keep=True))

    def full(*_: Any) -> CompiledAdapter:
        raise torch.OutOfMemoryError("no room")

    with monkeypatch.context() as patched:
        patched.setattr(CompiledAdapter, "to", lambda self, device: self if device.type == "cpu" else full())
        patched.setattr(engine.engine.mounts, "device", torch.device("cuda"))
        (failed,) = events(engine, Mount("one", str(adapter), "one"))
    assert failed.fault.code == ErrorCode.NO_CAPACITY
    assert engine.mount("one", adapter).tier == "host"
