"""Folders of sentence-transformers' modules: part of a base model's digest, and as strictly read as its top."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from graft_runtime.contract.checkpoints import CheckpointFile, may_belong
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.in_place import InPlaceCheckpoints
from graft_runtime.store.sources import Sources
from pydantic import ValidationError

from tests.support.shelf import MOUNT, embedder

URI = "pvc://shelf/base"
NEVER = {"1_Pooling/README.md", "onnx/config.json", "1_Pooling/deep/config.json"}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """A base model with the folders of two modules, and with files that belong to none."""
    base = tmp_path / "shelf" / "base"
    for name, content in embedder().items() | {(name, b"not part of the digest") for name in NEVER}:
        (base / name).parent.mkdir(parents=True, exist_ok=True)
        (base / name).write_bytes(content)
    return base


@pytest.fixture
def sources(base: Path) -> Sources:
    return Sources((MOUNT,), {"shelf": base.parent}, settled_seconds=0)


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 20, tuple)


def content(directory: Path) -> dict[str, bytes]:
    paths = [path for path in directory.rglob("*") if path.is_file()]
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in paths}


def test_modules_are_copied_read_only_counted_and_found_again(tmp_path: Path, sources: Sources, cache: Cache) -> None:
    cached = cache.copy(sources, URI, "model")
    assert content(cached.directory) == embedder()
    assert cached.bytes == sum(map(len, embedder().values()))
    assert all(path.stat().st_mode & 0o222 == 0 for path in [cached.directory, *cached.directory.rglob("*")])
    again = Cache(tmp_path / "cache", 1 << 20, tuple)
    assert again.find(cached.digest) == cached, "also its bytes, after a restart"
    assert again._contents.evict()
    assert not cached.directory.exists()


def test_another_pooling_is_another_digest(base: Path, sources: Sources, cache: Cache) -> None:
    first = cache.copy(sources, URI, "model").digest
    (base / "1_Pooling" / "README.md").write_text("other words")
    assert cache.copy(sources, URI, "model").digest == first
    (base / "1_Pooling" / "config.json").write_bytes(b'{"pooling_mode": "cls"}')
    assert cache.copy(sources, URI, "model").digest != first


def test_what_is_served_in_place_has_its_modules(tmp_path: Path, base: Path, sources: Sources, cache: Cache) -> None:
    checkpoints = InPlaceCheckpoints(tmp_path / "in-place", sources)
    opened = checkpoints.open(URI, cache.copy(sources, URI, "model").digest)
    assert content(opened.directory) == embedder()
    assert [held.name for held in opened.weights] == ["model.safetensors"]
    checkpoints.close()


def a_link(path: Path) -> None:
    elsewhere = path.rename(path.parent.parent / f"elsewhere-{path.name}")
    path.symlink_to(elsewhere)


def a_directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "change",
    [a_link, a_directory, a_pipe],
    ids=["a link", "a directory", "a pipe"],
)
def test_what_is_no_plain_file_is_refused(
    base: Path, sources: Sources, cache: Cache, change: Callable[[Path], None]
) -> None:
    change(base / "1_Pooling" / "config.json")
    with pytest.raises(GraftError) as caught:
        cache.copy(sources, URI, "model")
    assert caught.value.code is ErrorCode.UNSAFE_FILE


def test_nothing_is_read_through_a_folder_that_is_a_link(base: Path, sources: Sources, cache: Cache) -> None:
    a_link(base / "1_Pooling")
    a_link(base / "2_Dense")
    names = set(content(cache.copy(sources, URI, "model").directory))
    assert names == {name for name in embedder() if "/" not in name}


def test_a_folder_that_becomes_a_link_while_it_is_read_is_refused(base: Path, sources: Sources, cache: Cache) -> None:
    with sources.open(URI, None, lambda: pytest.fail("no archive")) as directory:
        assert "1_Pooling/config.json" in directory.names()
        a_link(base / "1_Pooling")
        with pytest.raises(GraftError) as caught:
            cache.take(directory, "model", "sha256:" + "0" * 64)
        assert "1_Pooling/config.json" not in directory.names()
        with pytest.raises(GraftError) as opened:
            directory.open_file("1_Pooling/config.json")
    assert caught.value.code is ErrorCode.DIGEST_MISMATCH
    assert opened.value.code is ErrorCode.UNSAFE_FILE


@pytest.mark.parametrize(
    ("path", "belongs"),
    [
        ("config.json", True),
        ("1_Pooling/config.json", True),
        ("../config.json", False),
        ("/config.json", False),
        ("1_Pooling/../config.json", False),
        ("1_Pooling/..", False),
        ("1_Pooling/", False),
        ("1_Pooling/2_Dense/config.json", False),
        ("1_Pooling\n/config.json", False),
        ("./config.json", False),
        ("onnx/config.json", False),
        ("..", False),
        ("", False),
        ("1_Pooling/a\0b", False),
    ],
)
def test_a_file_lies_at_the_top_or_in_the_folder_of_a_module(path: str, belongs: bool) -> None:
    assert may_belong(path) is belongs
    if "/" in path and not belongs and ".." not in path.rpartition("/")[2]:
        with pytest.raises(ValidationError):
            CheckpointFile(path=path, size=1, sha256="0" * 64)
