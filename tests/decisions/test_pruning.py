"""What a cache keeps beside its checkpoints doesn't grow for ever."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.durable import PARTIAL_SUFFIX
from graft_runtime.store.cache import Cache

HERE, GONE = "a" * 64, "b" * 64
HOUR, MONTH = 3600, 30 * 86_400


@pytest.fixture(params=[None, "this-pod"], ids=["alone", "shared"])
def cache_of(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    """`cache_of()`: the cache as a process finds it that starts; it holds one checkpoint."""

    def start() -> Cache:
        (tmp_path / "sha256" / HERE).mkdir(parents=True, exist_ok=True)
        return Cache(tmp_path, None, tuple, pod=request.param)

    for name in ("identities", "lists"):
        (tmp_path / name).mkdir()
    return start


def made(path: Path, content: str, seconds: float) -> Path:
    """Write a file so many seconds ago."""
    path.write_text(content)
    then = time.time() - seconds
    os.utime(path, (then, then))
    return path


def test_identities_of_no_use_go(tmp_path: Path, cache_of: Any) -> None:
    identities = tmp_path / "identities"
    kept = {
        made(identities / "used", f"sha256:{HERE}", MONTH - HOUR),
        made(identities / "another pod has just copied it", f"sha256:{GONE}", HOUR - 60),
    }
    made(identities / "its checkpoint is gone", f"sha256:{GONE}", HOUR + 60)
    made(identities / "nobody asks about it", f"sha256:{HERE}", MONTH + HOUR)
    made(identities / "damaged", "\0" * 9, HOUR + 60).write_bytes(b"\xff")
    os.utime(identities / "damaged", (0, 0))
    cache_of().prune()
    assert {*identities.iterdir()} == kept


def test_what_killed_processes_were_writing_goes_and_what_others_write_stays(tmp_path: Path, cache_of: Any) -> None:
    identities, lists = tmp_path / "identities", tmp_path / "lists"
    for directory in (identities, lists):
        made(directory / f"killed{PARTIAL_SUFFIX}", "", HOUR + 60)
    kept = {made(directory / f"written{PARTIAL_SUFFIX}", "", HOUR - 60) for directory in (identities, lists)}
    kept.add(made(lists / HERE, "{}", 2 * MONTH))
    cache_of().prune()
    assert {*identities.iterdir(), *lists.iterdir()} == kept


def test_a_cache_whose_checkpoints_can_not_be_seen_keeps_all(tmp_path: Path, cache_of: Any) -> None:
    cache = cache_of()
    (tmp_path / "sha256" / HERE).rmdir()
    (tmp_path / "sha256").rmdir()
    left = made(tmp_path / "identities" / "unknown", f"sha256:{GONE}", HOUR + 60)
    cache.prune()
    assert left.exists()
