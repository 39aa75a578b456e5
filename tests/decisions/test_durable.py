"""Files are there whole or not at all, and on the disk before they have their name."""

from __future__ import annotations

import concurrent.futures
import os
import platform
import threading
from pathlib import Path

import pytest
from graft_runtime.durable import new_directory, put_in_place, replacing, write_whole

OWN = f"{platform.node()}.{os.getpid()}.{threading.get_native_id()}"
"""In the names of what this thread writes."""


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What happened to files: `sync NAME`, `replace NAME`."""
    steps = list[str]()
    fsync, replace = os.fsync, Path.replace

    def synced(descriptor: int) -> None:
        steps.append(f"sync {Path(os.readlink(f'/proc/self/fd/{descriptor}')).name}")
        fsync(descriptor)

    def replaced(partial: Path, path: Path) -> Path:
        steps.append(f"replace {path.name}")
        return replace(partial, path)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "replace", replaced)
    return steps


def test_bytes_are_on_the_disk_before_the_name_and_the_name_after(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / "a").write_text("old")
    write_whole(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    assert steps == [f"sync a.{OWN}.partial", "replace a", f"sync {tmp_path.name}"]
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_a_directory_gets_its_name_whole(tmp_path: Path, steps: list[str]) -> None:
    (tmp_path / "partial").mkdir()
    (tmp_path / "partial" / "file").write_text("whole")
    put_in_place(tmp_path / "partial", tmp_path / "checkpoint")
    assert (tmp_path / "checkpoint" / "file").read_text() == "whole"
    assert steps == ["sync partial", "replace checkpoint", f"sync {tmp_path.name}"]


def test_a_new_directory_has_its_name_once_its_files_are_on_the_disk(tmp_path: Path, steps: list[str]) -> None:
    left = tmp_path / f"new.{OWN}.partial"
    left.mkdir()
    (left / "old").write_text("of a process that was killed")
    with new_directory(tmp_path / "new") as partial:
        (partial / "file").write_text("whole")
        assert not (tmp_path / "new").exists()
    assert [(path.name, path.read_text()) for path in (tmp_path / "new").iterdir()] == [("file", "whole")]
    assert steps == ["sync file", f"sync {left.name}", "replace new", f"sync {tmp_path.name}"]
    with pytest.raises(OSError, match="not empty"), new_directory(tmp_path / "new") as partial:
        (partial / "other").write_text("other")
    assert [path.name for path in tmp_path.glob("*/*")] == ["file"]


def test_threads_that_write_one_file_are_not_in_each_other_s_way(tmp_path: Path) -> None:
    """Each has begun before the first has ended; so has another pod's runtime, on a volume of both."""
    with concurrent.futures.ThreadPoolExecutor(3) as threads:
        began = threading.Barrier(3)

        def write(number: int) -> None:
            with replacing(tmp_path / "a") as partial:
                partial.write_text(str(number))
                began.wait(10)

        list(threads.map(write, range(3)))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").read_text() in {"0", "1", "2"}


@pytest.mark.parametrize("error", [OSError, KeyboardInterrupt])
def test_what_breaks_off_changes_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    (tmp_path / "a").write_text("old")
    with pytest.raises(error), replacing(tmp_path / "a") as partial:  # noqa: PT012 - half of a write
        partial.write_text("half of the n")
        raise error
    with pytest.raises(error), new_directory(tmp_path / "b") as partial:  # noqa: PT012 - half of a directory
        (partial / "file").write_text("half of the n")
        raise error
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "old")]


def test_what_a_killed_process_left_is_written_anew(tmp_path: Path) -> None:
    left = tmp_path / f"a.{OWN}.partial"
    left.symlink_to(tmp_path / "elsewhere")
    write_whole(tmp_path / "a", b"new")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a"]


def test_a_file_for_one_user_alone(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", b"secret", mode=0o600)
    assert (tmp_path / "a").stat().st_mode & 0o777 == 0o600
