"""What the ledger makes of the memory that there is."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from graft_runtime.engine import ledger
from graft_runtime.engine.ledger import CPU_CAP, Ledger, free_memory, open_ledger, room_in_host
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.runners.kv import LayerShape

MEBIBYTE = 1 << 20


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"),
    [("max", 0, 0, 1000), (str(600 * MEBIBYTE), 500, 100, 200), (str(5000 * MEBIBYTE), 100, 0, 1000), ("1", 5, 0, 0)],
)
def test_free_memory_is_the_machine_s_and_the_container_s(
    tmp_path: Path, limit: str, used: int, cached: int, free: int
) -> None:
    (tmp_path / "meminfo").write_text(f"MemTotal: 9 kB\nMemAvailable:  {1000 << 10} kB\nHugePages_Total: 0\n")
    (tmp_path / "memory.max").write_text(f"{limit}\n")
    (tmp_path / "memory.current").write_text(f"{used * MEBIBYTE}\n")
    (tmp_path / "memory.stat").write_text(f"anon 5\ninactive_file {cached * MEBIBYTE}\n")
    assert free_memory(tmp_path / "meminfo", tmp_path) // MEBIBYTE == free
    assert free_memory(tmp_path / "meminfo", tmp_path / "nowhere") // MEBIBYTE == 1000


@pytest.mark.parametrize(("free", "room"), [(400 * MEBIBYTE, 100 * MEBIBYTE), (1 << 40, CPU_CAP)])
def test_a_quarter_of_what_is_free_is_for_keys_and_values(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, free: int, room: int
) -> None:
    monkeypatch.setattr(ledger, "free_memory", lambda: free)
    layers = [LayerShape(heads=2, key_features=8, value_features=8)] * 4
    with caplog.at_level(logging.INFO):
        opened = open_ledger(layers, bank=7 * MEBIBYTE, dtype=torch.bfloat16, device=torch.device("cpu"))
    assert (opened.keys_and_values, opened.tokens) == (room, room // (4 * 2 * 16 * 2))
    assert f"keys and values {room // MEBIBYTE} MiB = {opened.tokens} tokens of 256 bytes" in caplog.text


def test_the_longest_sequence_can_always_grow() -> None:
    assert Ledger(0, 0, 0, 0, tokens=1000).longest(8192) == 500
    assert Ledger(0, 0, 0, 0, tokens=100_000).longest(8192) == 8192
    with pytest.raises(GraftError) as refused:
        Ledger(0, 0, 0, 0, tokens=3).longest(8192)
    assert refused.value.code == ErrorCode.NO_CAPACITY


@pytest.mark.parametrize(("device", "room"), [("cpu", 100), ("cuda", 400)])
def test_host_memory_has_room_for_adapters_that_leave_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, room: int
) -> None:
    monkeypatch.setattr(ledger, "free_memory", lambda: 800 * MEBIBYTE)
    with caplog.at_level(logging.INFO):
        assert room_in_host(torch.device(device)) == room * MEBIBYTE
    assert f"800 MiB free; adapters that are not mounted up to {room} MiB" in caplog.text
