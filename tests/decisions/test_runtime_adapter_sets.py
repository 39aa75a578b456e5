"""Which adapter set a pod boots with, and which it takes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import ADAPTER_SET_FILE, AdapterSet
from graft_runtime.errors import GraftError
from graft_runtime.pod.sets import AdapterSets

from tests.support.adapter_sets import entry_of, set_of


def adapter_set(generation: int, *names: str, **fields: Any) -> AdapterSet:
    return set_of(generation, *map(entry_of, names), **fields)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    """Of the mounted set, and of the kept one."""
    mounted, state = tmp_path / "mounted", tmp_path / "state"
    mounted.mkdir()
    state.mkdir()
    return mounted, state


def put(directory: Path, content: AdapterSet | bytes) -> None:
    (directory / ADAPTER_SET_FILE).write_bytes(content if isinstance(content, bytes) else content.to_gzip())


def sets(places: tuple[Path, Path]) -> AdapterSets:
    return AdapterSets("pool", "hash", *places)


def test_without_any_set_there_is_none(places: tuple[Path, Path]) -> None:
    assert sets(places).boot() is None
    assert sets(places).version.generation == 0


@pytest.mark.parametrize(("mounted", "kept"), [(3, 2), (2, 3)])
def test_the_newer_of_the_mounted_and_the_kept_one_is_in_force(places: Any, mounted: int, kept: int) -> None:
    put(places[0], adapter_set(mounted))
    put(places[1], adapter_set(kept))
    assert sets(places).boot() == adapter_set(3)


@pytest.mark.parametrize(
    "bad",
    [b"", b"no gzip", adapter_set(9).to_gzip()[:-4], adapter_set(9, pool_uid="x"), adapter_set(9, config_hash="x")],
    ids=["empty", "no gzip", "truncated", "another pool's", "another config's"],
)
def test_a_set_that_is_none_is_passed_over(places: tuple[Path, Path], bad: AdapterSet | bytes) -> None:
    put(places[0], bad)
    put(places[1], adapter_set(1, "a"))
    assert sets(places).boot() == adapter_set(1, "a")


def test_what_was_accepted_is_in_force_after_a_restart(places: tuple[Path, Path]) -> None:
    put(places[0], adapter_set(1))
    first = sets(places)
    first.boot()
    assert first.accept(adapter_set(2, "a"))
    assert not first.accept(adapter_set(2, "a")), "the same again changes nothing"
    assert sets(places).boot() == adapter_set(2, "a")


def test_a_refused_set_changes_nothing(places: tuple[Path, Path]) -> None:
    here = sets(places)
    here.accept(adapter_set(2, "a"))
    for wrong in (adapter_set(1), adapter_set(2, "b"), adapter_set(3, pool_uid="x"), adapter_set(3, config_hash="x")):
        with pytest.raises(GraftError):
            here.accept(wrong)
    assert here.current == sets(places).boot() == adapter_set(2, "a")


def test_a_mounted_set_counts_later_only_when_it_is_newer(places: tuple[Path, Path]) -> None:
    here = sets(places)
    here.accept(adapter_set(2, "a"))
    put(places[0], adapter_set(1))
    assert here.follow_mounted() is None
    put(places[0], adapter_set(3, "b"))
    assert here.follow_mounted() == adapter_set(3, "b")
    assert here.follow_mounted() is None
