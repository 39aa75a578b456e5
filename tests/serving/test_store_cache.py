"""The cache: whole or not at all, read-only, under its digest; full caches."""

from __future__ import annotations

import errno
import io
import os
import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.sources import Directory, Sources
from graft_runtime.store.sources.declared import SETTLED_SECONDS

from tests.support.shelf import ADAPTER_BYTES, MOUNT, WEIGHTS_BYTES, filled, write_adapter


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return filled(tmp_path / "shelf")


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """Inside, no file of this process may grow past this many bytes, not even a log that pytest writes to."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def copy(cache: Cache, sources: Sources, name: str) -> Cached:
    return cache.copy(sources, f"pvc://shelf/{name}", "adapter")


def test_what_was_copied_is_whole_read_only_and_found_again(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", None, tuple)
    cached = copy(cache, sources, "a")
    assert sorted(path.name for path in cached.directory.iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    assert cached.bytes == ADAPTER_BYTES
    assert cached.directory.stat().st_mode & 0o222 == 0
    assert all(path.stat().st_mode & 0o222 == 0 for path in cached.directory.iterdir())
    assert cache.find(cached.digest) == cached
    assert Cache(tmp_path / "cache", None, tuple).find(cached.digest) == cached, "also after a restart"
    assert copy(cache, sources, "a") == cached
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def test_the_digest_follows_the_bytes_and_nothing_else(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", None, tuple)
    first = copy(cache, sources, "a").digest
    (tmp_path / "shelf" / "a" / "README.md").write_text("other words")
    os.utime(tmp_path / "shelf" / "a" / "adapter_config.json", (1, 1))
    assert copy(cache, sources, "a").digest == first
    write_adapter(tmp_path / "shelf" / "a", "x")
    assert copy(cache, sources, "a").digest != first


class Watched(Sources):
    """Sources that note which files are opened, and let something happen before a piece of one is read."""

    def __init__(self, *arguments: Any, before_read: Callable[[str], None] = lambda name: None, **limits: Any) -> None:
        super().__init__(*arguments, **limits)
        self.opened: list[str] = []
        self.before_read = before_read

    @contextmanager
    def open(self, *arguments: Any) -> Iterator[Directory]:
        with super().open(*arguments) as directory:
            open_file = directory.open_file

            def watched(name: str) -> Any:
                self.opened.append(name)
                return WatchedFile(open_file(name), lambda: self.before_read(name))

            directory.open_file = watched  # type: ignore[method-assign]
            yield directory


class WatchedFile:
    def __init__(self, file: Any, before_read: Callable[[], None]) -> None:
        self._file, self._before_read = file, before_read

    def __enter__(self) -> WatchedFile:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def read(self, size: int) -> Any:
        self._before_read()
        return self._file.read(size)


@pytest.fixture
def settled(tmp_path: Path, sources: Sources) -> Watched:
    """The shelf and `pvc://shelf/model`, whose last change was long ago as far as we look."""
    directory = tmp_path / "shelf" / "model"
    directory.mkdir()
    (directory / "config.json").write_text("{}")
    (directory / "model.safetensors").write_bytes(b"w" * WEIGHTS_BYTES)
    return Watched((MOUNT,), {"shelf": tmp_path / "shelf"}, settled_seconds=0)


def test_a_base_that_did_not_change_is_not_copied_again_after_a_restart(tmp_path: Path, settled: Watched) -> None:
    first = Cache(tmp_path / "cache", None, tuple).copy(settled, "pvc://shelf/model", "model")
    assert len(settled.opened) == 2
    again = Cache(tmp_path / "cache", None, tuple).copy(settled, "pvc://shelf/model", "model")
    assert (again, len(settled.opened)) == (first, 2)
    for file in (tmp_path / "cache" / "identities").iterdir():
        file.write_text("[1]")
    assert Cache(tmp_path / "cache", None, tuple).copy(settled, "pvc://shelf/model", "model") == first
    assert len(settled.opened) == 4, "what was remembered is gone"


def test_other_bytes_of_the_same_size_and_time_are_seen(tmp_path: Path, settled: Watched) -> None:
    cache, weights = Cache(tmp_path / "cache", None, tuple), tmp_path / "shelf/model/model.safetensors"
    first = cache.copy(settled, "pvc://shelf/model", "model").digest
    before = weights.stat()
    while weights.stat().st_ctime_ns == before.st_ctime_ns:  # until the clock of the file system has ticked
        weights.write_bytes(b"x" * WEIGHTS_BYTES)
        os.utime(weights, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert weights.stat().st_mtime_ns == before.st_mtime_ns
    assert cache.copy(settled, "pvc://shelf/model", "model").digest != first


BUSY = 300 * SETTLED_SECONDS
"""A moment on a machine that does much else."""


def test_what_changed_a_moment_ago_is_read_again(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", None, tuple)
    watched = Watched(
        (MOUNT,), {"shelf": tmp_path / "shelf"}, settled_seconds=600
    )  # a moment on a busy machine as well
    for _ in range(2):
        copy(cache, watched, "a")
    assert len(watched.opened) == 4


@pytest.mark.parametrize("how", ["grows", "is cut", "is replaced", "goes"])
def test_a_source_that_changes_while_it_is_read_is_not_taken(tmp_path: Path, sources: Sources, how: str) -> None:
    """Half old and half new: neither version is what would be mounted."""
    weights, config = tmp_path / "shelf/a/adapter_model.safetensors", tmp_path / "shelf/a/adapter_config.json"
    changes = [how]

    def change(name: str) -> None:
        if name == weights.name and changes:
            match changes.pop():
                case "grows":
                    with weights.open("ab") as file:
                        file.write(b"more")
                case "is cut":
                    os.truncate(weights, WEIGHTS_BYTES // 2)
                case "is replaced":
                    (tmp_path / "new").write_text('{"r": 2}')
                    (tmp_path / "new").replace(config)
                case _:
                    weights.unlink()

    cache = Cache(tmp_path / "cache", None, tuple)
    watched = Watched((MOUNT,), {"shelf": tmp_path / "shelf"}, before_read=change)
    with pytest.raises(GraftError, match="changed while it was read") as caught:
        copy(cache, watched, "a")
    assert caught.value.code == "SourceUnavailable"
    assert changes == []
    assert list((tmp_path / "cache" / "sha256").iterdir()) == []
    write_adapter(tmp_path / "shelf" / "a", "a")
    assert copy(cache, sources, "a").bytes == ADAPTER_BYTES, "it is tried again"


def test_a_full_cache_lets_the_least_recently_used_go(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", 2 * ADAPTER_BYTES, tuple)
    a, b = copy(cache, sources, "a"), copy(cache, sources, "b")
    cache.find(a.digest)
    c = copy(cache, sources, "c")
    assert cache.find(b.digest) is None
    assert not b.directory.exists()
    assert cache.find(a.digest)
    assert cache.find(c.digest)


def test_what_is_in_use_stays_and_the_newcomer_is_refused(tmp_path: Path, sources: Sources) -> None:
    used: set[str] = set()
    cache = Cache(tmp_path / "cache", ADAPTER_BYTES + 10, lambda: used)
    a = copy(cache, sources, "a")
    used.add(a.digest)
    for _ in range(3):  # a refusal leaves nothing behind that would count
        with pytest.raises(GraftError) as caught:
            copy(cache, sources, "b")
        assert caught.value.code == "NoCapacity"
    assert cache.find(a.digest)
    used.clear()
    assert copy(cache, sources, "b").bytes == ADAPTER_BYTES


class SmallDisk(io.FileIO):
    """A file on a disk with `room` bytes below `root`: it takes what fits, and refuses the next byte."""

    root: Path
    room: int

    def write(self, piece: Any, /) -> int:
        room = self.room - sum(path.stat().st_size for path in self.root.rglob("adapter_*"))
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return super().write(memoryview(piece)[:room])


def small_disk(root: Path, room: int) -> type[SmallDisk]:
    return type("SmallDisk", (SmallDisk,), {"root": root, "room": room})


def test_a_full_disk_is_told_and_leaves_nothing(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", None, tuple, create=small_disk(tmp_path / "cache", 0))
    with pytest.raises(GraftError) as caught:
        copy(cache, sources, "a")
    assert caught.value.code == "NoCapacity"
    assert list((tmp_path / "cache" / "partial").iterdir()) == []


def test_a_disk_that_takes_only_part_of_a_write_is_full(tmp_path: Path, sources: Sources, unfinished: Any) -> None:
    """The kernel writes what still fits and says so; only the next write is refused."""
    cache = Cache(tmp_path / "cache", None, tuple)
    with file_size_limit(WEIGHTS_BYTES - 1), pytest.raises(GraftError) as caught:
        copy(cache, sources, "a")
    assert caught.value.code == "NoCapacity"
    assert unfinished() == []
    assert list((tmp_path / "cache" / "sha256").iterdir()) == []


def test_on_a_full_disk_what_nobody_uses_goes_first(tmp_path: Path, sources: Sources, unfinished: Any) -> None:
    used: set[str] = set()
    disk = small_disk(tmp_path / "cache", 2 * ADAPTER_BYTES)
    cache = Cache(tmp_path / "cache", None, lambda: used, create=disk)
    a, b = copy(cache, sources, "a"), copy(cache, sources, "b")
    used.add(a.digest)
    c = copy(cache, sources, "c")
    used.add(c.digest)
    with pytest.raises(GraftError) as caught:
        copy(cache, sources, "b")
    assert caught.value.code == "NoCapacity"
    assert (c.directory / "adapter_model.safetensors").read_bytes() == b"c" * WEIGHTS_BYTES
    assert cache.find(b.digest) is None
    assert cache.find(a.digest)
    assert unfinished() == []


def test_what_was_half_copied_before_a_kill_is_swept(tmp_path: Path) -> None:
    half = tmp_path / "cache" / "partial" / "0"
    half.mkdir(parents=True)
    (half / "adapter_config.json").write_text("{")
    Cache(tmp_path / "cache", None, tuple)
    assert not half.exists()


@pytest.fixture
def sparse(tmp_path: Path) -> str:
    """Where an adapter is whose weights are a hole of a tebibyte."""
    write_adapter(tmp_path / "shelf" / "hole", "x")
    os.truncate(tmp_path / "shelf" / "hole" / "adapter_model.safetensors", 1 << 40)
    return "pvc://shelf/hole"


@pytest.mark.parametrize(
    ("limits", "told"),
    [
        ({"adapter_bytes": 5000}, ("TooLarge", "1099511627778", "5000")),
        ({}, ("NoCapacity", "1099511627778", f"{4 * ADAPTER_BYTES} bytes", f"{ADAPTER_BYTES} are in use")),
    ],
)
def test_what_is_too_large_is_refused_unread_and_nobody_goes_for_it(
    tmp_path: Path, sources: Sources, sparse: str, limits: dict[str, Any], told: tuple[str, ...]
) -> None:
    kept: list[str] = []
    cache = Cache(tmp_path / "cache", 4 * ADAPTER_BYTES, lambda: kept, **limits)
    others = [copy(cache, sources, name) for name in ("a", "b")]
    kept.append(others[0].digest)
    watched = Watched((MOUNT,), {"shelf": tmp_path / "shelf"})
    with pytest.raises(GraftError) as caught:
        cache.copy(watched, sparse, "adapter")
    assert all(part in str(caught.value) for part in told)
    assert watched.opened == []
    assert [cache.find(other.digest) for other in others] == others


def test_a_base_may_be_larger_than_adapters(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", None, tuple, adapter_bytes=ADAPTER_BYTES - 1)
    (tmp_path / "shelf" / "m").mkdir()
    (tmp_path / "shelf" / "m" / "config.json").write_text("{}")
    (tmp_path / "shelf" / "m" / "model.safetensors").write_bytes(b"x" * 2 * ADAPTER_BYTES)
    assert cache.copy(sources, "pvc://shelf/m", "model").bytes == 2 * ADAPTER_BYTES + 2
    with pytest.raises(GraftError, match="at most"):
        copy(cache, sources, "a")


def test_a_file_that_grows_while_it_is_read_ends_where_it_was_announced_to(tmp_path: Path) -> None:
    file = tmp_path / "shelf" / "a" / "adapter_model.safetensors"
    write_adapter(tmp_path / "shelf" / "a", "a")

    def grow(name: str) -> None:
        if name == file.name:
            with file.open("ab") as weights:
                weights.write(b"x")

    cache = Cache(tmp_path / "cache", None, tuple)
    with pytest.raises(GraftError, match="changed while it was read: it had 1000 bytes"):
        cache.copy(Watched((MOUNT,), {"shelf": tmp_path / "shelf"}, before_read=grow), "pvc://shelf/a", "adapter")
