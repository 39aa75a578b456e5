"""Weights that are read where they lie: under the same digest as a copy, and only while they are what was hashed."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.in_place import InPlace, InPlaceCheckpoints
from graft_runtime.store.sources import Sources

from tests.support.shelf import MOUNT

URI = "pvc://shelf/base"
FILES = {
    "config.json": "{}",
    "tokenizer.json": "{}",
    "model.safetensors.index.json": "{}",
    "model-1.safetensors": "the first half",
    "model-2.safetensors": "the second half",
}


class Shelf:
    """A claim with a base model, and a pod that reads it in place."""

    def __init__(self, directory: Path) -> None:
        self.shelf, self.base, self._cache = directory / "shelf", directory / "shelf" / "base", directory / "in-place"
        self.base.mkdir(parents=True)
        for name, text in FILES.items():
            (self.base / name).write_text(text)
        self.sources = Sources((MOUNT,), {"shelf": self.shelf}, settled_seconds=0)
        self.digest = Cache(directory / "cache", None, tuple).copy(self.sources, URI, "model").digest
        self.started: list[InPlaceCheckpoints] = []
        self.start()

    def start(self, settled_seconds: float = 0) -> None:
        """Start the pod, or start it again."""
        sources = Sources((MOUNT,), {"shelf": self.shelf}, settled_seconds=settled_seconds)
        self.started.append(InPlaceCheckpoints(self._cache, sources))

    @property
    def checkpoints(self) -> InPlaceCheckpoints:
        return self.started[-1]

    def opened(self) -> InPlace:
        return self.checkpoints.open(URI, self.digest)

    def refused(self, digest: str | None = None) -> GraftError:
        with pytest.raises(GraftError) as caught:
            self.checkpoints.open(URI, digest or self.digest)
        return caught.value

    def partial(self) -> list[Path]:
        return list((self._cache / "partial").iterdir())


@pytest.fixture
def shelf(tmp_path: Path) -> Iterator[Shelf]:
    shelf = Shelf(tmp_path)
    yield shelf
    for checkpoints in shelf.started:
        checkpoints.close()


def test_weights_are_linked_under_the_digest_of_a_copy_and_all_else_is_copied(shelf: Shelf) -> None:
    opened = shelf.opened()
    assert opened.digest == shelf.digest
    assert {path.name: path.read_text() for path in opened.directory.iterdir()} == FILES
    links = {path.name for path in opened.directory.iterdir() if path.is_symlink()}
    assert links == {"model-1.safetensors", "model-2.safetensors"}
    opened.check()


def test_nothing_is_left_for_the_next_process_which_hashes_again(shelf: Shelf) -> None:
    first = shelf.opened()
    shelf.start()
    assert shelf.partial() == []
    assert not first.directory.exists()
    (shelf.base / "model-1.safetensors").write_text("another half")
    assert shelf.refused().code is ErrorCode.DIGEST_MISMATCH


def written_with_its_time_put_back(file: Path) -> None:
    status = file.stat()
    file.write_text("THE FIRST HALF")
    os.utime(file, ns=(status.st_atime_ns, status.st_mtime_ns))


def replaced(file: Path) -> None:
    (file.parent / "other").write_text("THE FIRST HALF")
    (file.parent / "other").replace(file)


def replaced_by_a_link(file: Path) -> None:
    elsewhere = file.parent.parent / "elsewhere"
    elsewhere.write_text("THE FIRST HALF")
    file.unlink()
    file.symlink_to(elsewhere)


def cut_off(file: Path) -> None:
    os.truncate(file, 3)


@pytest.mark.parametrize("change", [written_with_its_time_put_back, replaced, replaced_by_a_link, cut_off, Path.unlink])
def test_a_changed_file_is_found_by_name(shelf: Shelf, change: Callable[[Path], None]) -> None:
    opened = shelf.opened()
    change(shelf.base / "model-1.safetensors")
    with pytest.raises(GraftError, match=r"model-1\.safetensors has changed") as caught:
        opened.check()
    assert caught.value.code is ErrorCode.DIGEST_MISMATCH
    assert "put the old file back" in str(caught.value.hint)


def test_a_directory_that_is_exchanged_changes_nothing_of_what_is_read(shelf: Shelf) -> None:
    opened = shelf.opened()
    shelf.base.rename(shelf.shelf / "old")
    shelf.base.mkdir()
    (shelf.base / "model-1.safetensors").write_text("THE FIRST HALF")
    opened.check()
    assert (opened.directory / "model-1.safetensors").read_text() == FILES["model-1.safetensors"]


@pytest.mark.parametrize("name", ["model-1.safetensors", "config.json"])
def test_a_link_in_place_of_a_file_is_refused(shelf: Shelf, name: str) -> None:
    file = shelf.base / name
    file.rename(shelf.shelf / "elsewhere")
    file.symlink_to(shelf.shelf / "elsewhere")
    assert shelf.refused().code is ErrorCode.UNSAFE_FILE
    assert shelf.partial() == []


def test_other_bytes_are_refused_and_read_once(shelf: Shelf, monkeypatch: pytest.MonkeyPatch) -> None:
    other = "sha256:" + "0" * 64
    read: list[Any] = []
    digest_of_file = hashlib.file_digest

    def counted(file: Any, name: str) -> Any:
        read.append(file)
        return digest_of_file(file, name)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    for _ in range(2):
        fault = shelf.refused(other)
        assert fault.code is ErrorCode.DIGEST_MISMATCH
        assert f"holds {shelf.digest}, expected {other}" in fault.what
    assert len(read) == 2, "both halves, in the first try"
    assert shelf.partial() == []
    shelf.opened().check()


def test_what_has_just_changed_is_waited_for(shelf: Shelf) -> None:
    shelf.start(settled_seconds=3600)
    assert shelf.refused().code is ErrorCode.SOURCE_UNAVAILABLE


def test_what_is_not_mounted_is_never_read_in_place(shelf: Shelf) -> None:
    with pytest.raises(GraftError, match="takes a mounted directory, and a digest"):
        shelf.checkpoints.open(URI, None)
