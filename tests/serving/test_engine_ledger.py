"""What the ledger makes of the memory that there is."""

from __future__ import annotations

import json
import logging
import os
from pathlib import Path

import pytest
import torch
from graft_runtime.contract.config import EngineConfig
from graft_runtime.engine import ledger
from graft_runtime.engine.ledger import CPU_CAP, Ledger, check_room, open_ledger, room_in_host
from graft_runtime.engine.loader import BaseReady, Loader
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.memory import free_memory
from graft_runtime.messages import BaseFailed, Start
from graft_runtime.model.load import weight_bytes
from graft_runtime.runners.decoder.attention import LayerShape
from transformers import AutoModelForCausalLM

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
    assert free_memory(tmp_path, tmp_path) // MEBIBYTE == free
    assert free_memory(tmp_path, tmp_path / "nowhere") // MEBIBYTE == 1000


@pytest.mark.parametrize(
    ("limit", "used", "cached", "free"), [(2**63 - 4096, 0, 0, 1000), (600 * MEBIBYTE, 500, 100, 200)]
)
def test_a_cgroup_of_version_1_limits_as_well(tmp_path: Path, limit: int, used: int, cached: int, free: int) -> None:
    (tmp_path / "meminfo").write_text(f"MemAvailable:  {1000 << 10} kB\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.limit_in_bytes").write_text(f"{limit}\n")
    (tmp_path / "memory" / "memory.usage_in_bytes").write_text(f"{used * MEBIBYTE}\n")
    (tmp_path / "memory" / "memory.stat").write_text(f"inactive_file 1\ntotal_inactive_file {cached * MEBIBYTE}\n")
    assert free_memory(tmp_path, tmp_path) // MEBIBYTE == free


def test_a_limit_that_only_the_pod_knows_counts_what_both_processes_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "meminfo").write_text(f"MemAvailable:  {1000 << 10} kB\n")
    for name, held in (("self", 70), (str(os.getppid()), 30)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "status").write_text(
            f"Name:\tx\nRssAnon:\t{held << 10} kB\nRssFile:\t9 kB\nRssShmem:\t0 kB\n"
        )
    assert free_memory(tmp_path, tmp_path, str(600 * MEBIBYTE)) == 500 * MEBIBYTE
    monkeypatch.setenv("GRAFT_MEMORY_LIMIT", str(400 * MEBIBYTE))
    assert free_memory(tmp_path, tmp_path) == 300 * MEBIBYTE


@pytest.mark.parametrize(("dtype", "size"), [("float32", 4), ("bfloat16", 2)])
def test_a_base_that_cannot_fit_is_refused_with_numbers_before_it_is_loaded(
    monkeypatch: pytest.MonkeyPatch, tiny_base: Path, dtype: str, size: int
) -> None:
    loaded = Loader().do(Start(str(tiny_base), "tiny", dtype, EngineConfig()))
    assert isinstance(loaded, BaseReady)
    needed = sum(each.numel() for each in loaded.base.model.parameters()) * size
    monkeypatch.setattr(ledger, "free_memory", lambda: needed - 1)
    refused = Loader().do(Start(str(tiny_base), "tiny", dtype, EngineConfig()))
    assert isinstance(refused, BaseFailed)
    assert refused.fault.code == ErrorCode.NO_CAPACITY


def test_a_refusal_for_want_of_memory_says_what_is_needed_and_what_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "free_memory", lambda: 600 * MEBIBYTE)
    with pytest.raises(GraftError) as refused:
        check_room("big", 7000 * MEBIBYTE, torch.device("cpu"))
    assert refused.value.what == ("base model `big` needs 7000 MiB for its weights alone; 600 MiB of memory are free")


def test_weights_for_an_accelerator_come_through_the_host_s_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ledger, "_free", lambda _: 80_000 * MEBIBYTE)
    monkeypatch.setattr(ledger, "free_memory", lambda: 14_000 * MEBIBYTE)
    with pytest.raises(GraftError, match="14000 MiB of the host's memory are free"):
        check_room("big", 16_000 * MEBIBYTE, torch.device("cuda"))
    check_room("small", 6000 * MEBIBYTE, torch.device("cuda"))


@pytest.mark.parametrize("keeps", [True, False])
@pytest.mark.parametrize(("free", "room"), [(400 * MEBIBYTE, 100 * MEBIBYTE), (1 << 40, CPU_CAP)])
def test_a_quarter_of_what_is_free_is_for_keys_and_values(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, *, free: int, room: int, keeps: bool
) -> None:
    monkeypatch.setattr(ledger, "free_memory", lambda: free)
    layers = [LayerShape(heads=2, key_features=8, value_features=8)] * 4
    with caplog.at_level(logging.INFO):
        opened = open_ledger(layers, bank=7 * MEBIBYTE, dtype=torch.bfloat16, device=torch.device("cpu"), keeps=keeps)
    tokens = room // (4 * 2 * 16 * 2)
    assert (opened.keys_and_values, opened.tokens + opened.kept) == (room, tokens)
    assert opened.kept == (tokens // 4 if keeps else 0)
    shares = f"{opened.tokens} tokens of 256 bytes that run, up to {opened.kept} kept for later"
    assert f"keys and values up to {room // MEBIBYTE} MiB: {shares}" in caplog.text


def test_the_longest_sequence_can_always_grow() -> None:
    assert Ledger(0, 0, 0, 0, 0, tokens=1000, kept=0).longest(8192, moves=True) == 500
    assert Ledger(0, 0, 0, 0, 0, tokens=1000, kept=0).longest(8192, moves=False) == 1000
    assert Ledger(0, 0, 0, 0, 0, tokens=100_000, kept=0).longest(8192, moves=True) == 8192
    with pytest.raises(GraftError) as refused:
        Ledger(0, 0, 0, 0, 0, tokens=3, kept=0).longest(8192, moves=True)
    assert refused.value.code == ErrorCode.NO_CAPACITY


@pytest.mark.parametrize(("device", "room"), [("cpu", 100), ("cuda", 400)])
def test_host_memory_has_room_for_adapters_that_leave_the_device(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, device: str, room: int
) -> None:
    monkeypatch.setattr(ledger, "free_memory", lambda: 800 * MEBIBYTE)
    with caplog.at_level(logging.INFO):
        assert room_in_host(torch.device(device)) == room * MEBIBYTE
    assert f"800 MiB free; adapters that are not mounted up to {room} MiB" in caplog.text


def test_weights_without_a_declared_dtype_take_what_their_files_take(tiny_base: Path, tmp_path: Path) -> None:
    half = tmp_path / "half"
    AutoModelForCausalLM.from_pretrained(tiny_base, dtype=torch.float16).save_pretrained(half)
    declared = weight_bytes(half, name="base", dtype="auto")
    config = json.loads((half / "config.json").read_text())
    (half / "config.json").write_text(json.dumps({k: v for k, v in config.items() if "dtype" not in k}))
    undeclared = weight_bytes(half, name="base", dtype="auto")
    assert declared <= undeclared < 1.1 * declared, "files have a header besides"
    assert weight_bytes(half, name="base", dtype="float32") == 2 * declared
