"""Where the control plane's programs come from, and that two runs build them once."""

from __future__ import annotations

import io
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from graft_local.binaries import ETCD, KUBERNETES, Build, Group, ensure_group
from graft_local.errors import LocalClusterError
from graft_local.progress import Progress

GROUP = Group(name="thing", version="2.5.1", module=Path("thing"), packages={"one": "a", "two": "b"})


@pytest.fixture(autouse=True)
def no_assets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KUBEBUILDER_ASSETS", raising=False)


@pytest.fixture
def progress() -> Progress:
    return Progress(io.StringIO())


def program(path: Path, version: str = "2.5.1") -> None:
    path.write_text(f"#!/bin/sh\necho Thing v{version}\n")
    path.chmod(0o755)


def builder(calls: list[str], names: tuple[str, ...] = ("one", "two"), before: Callable[[], object] = list) -> Build:
    def build(group: Group, output: Path, _: Progress) -> None:
        calls.append(group.name)
        before()
        for name in names:
            program(output / name)

    return build


def test_what_is_nowhere_is_built_once_and_kept(tmp_path: Path, progress: Progress) -> None:
    calls: list[str] = []
    first = ensure_group(GROUP, tmp_path, builder(calls), progress)
    again = ensure_group(GROUP, tmp_path, builder(calls), progress)
    assert calls == ["thing"]
    assert first == again == {name: tmp_path / GROUP.key / name for name in ("one", "two")}


def test_the_cache_is_keyed_by_version_and_machine() -> None:
    assert GROUP.key.startswith("thing-2.5.1-linux-")


def test_two_at_once_build_once(tmp_path: Path, progress: Progress) -> None:
    calls: list[str] = []
    building, second_waits = threading.Event(), threading.Event()

    def wait_for_the_second() -> None:
        building.set()
        assert second_waits.wait(10)

    results: list[dict[str, Path]] = []
    build = builder(calls, before=wait_for_the_second)
    threads = [
        threading.Thread(target=lambda: results.append(ensure_group(GROUP, tmp_path, build, progress)))
        for _ in range(2)
    ]
    threads[0].start()
    assert building.wait(10)
    threads[1].start()
    second_waits.set()
    for thread in threads:
        thread.join(10)
    assert calls == ["thing"]
    assert len(results) == 2
    assert results[0] == results[1]


def test_a_failed_build_leaves_nothing_and_the_next_one_begins_anew(tmp_path: Path, progress: Progress) -> None:
    def fail() -> None:
        raise LocalClusterError("no room")

    with pytest.raises(LocalClusterError, match="no room"):
        ensure_group(GROUP, tmp_path, builder([], before=fail), progress)
    assert [path.name for path in tmp_path.iterdir()] == [f"{GROUP.key}.lock"]
    ensure_group(GROUP, tmp_path, builder([]), progress)
    assert (tmp_path / GROUP.key / "two").exists()


def test_what_a_killed_build_left_is_removed(tmp_path: Path, progress: Progress) -> None:
    (tmp_path / f".{GROUP.key}-x1y2" / "bin").mkdir(parents=True)
    ensure_group(GROUP, tmp_path, builder([]), progress)
    assert sorted(path.name for path in tmp_path.iterdir()) == [GROUP.key, f"{GROUP.key}.lock"]


def test_a_build_that_lacks_a_program_is_a_fault(tmp_path: Path, progress: Progress) -> None:
    with pytest.raises(LocalClusterError, match=r"thing 2\.5\.1 made no two"):
        ensure_group(GROUP, tmp_path, builder([], names=("one",)), progress)
    assert not (tmp_path / GROUP.key).exists()


def test_given_programs_of_the_right_minor_version_are_taken_one_by_one(
    tmp_path: Path, progress: Progress, monkeypatch: pytest.MonkeyPatch
) -> None:
    assets = tmp_path / "assets"
    assets.mkdir()
    program(assets / "one", version="2.5.9")
    program(assets / "two", version="2.4.1")
    monkeypatch.setenv("KUBEBUILDER_ASSETS", str(assets))
    calls: list[str] = []
    found = ensure_group(GROUP, tmp_path / "cache", builder(calls), progress)
    assert found == {"one": assets / "one", "two": tmp_path / "cache" / GROUP.key / "two"}
    program(assets / "two", version="2.5.0")
    assert ensure_group(GROUP, tmp_path / "other", builder(calls), progress)["two"] == assets / "two"
    assert calls == ["thing"]


def test_the_programs_tell_their_version() -> None:
    assert "-X k8s.io/component-base/version.gitVersion=v1.34.4" in KUBERNETES.linker_flags
    assert ETCD.linker_flags == "-s -w"
