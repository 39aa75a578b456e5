"""Hostile and broken sources: each gets its fault, and nothing outside the mount is ever read."""

from __future__ import annotations

import contextlib
import hashlib
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from graft_runtime.base.files import check_weights
from graft_runtime.contract.config import SourceMount
from graft_runtime.errors import GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.checkpoints import select_files
from graft_runtime.store.sources import Sources

MOUNTS = (
    SourceMount(name="shelf", kind="claim"),
    SourceMount(name="disk", kind="directory", uri_prefixes=("file:///data/models/",)),
    SourceMount(name="gone", kind="claim"),
)


@pytest.fixture
def shelf(tmp_path: Path) -> Path:
    """`shelf/good` is an adapter as far as the store looks; `outside` lies beside the mount."""
    shelf = tmp_path / "shelf"
    for directory in (shelf / "good", tmp_path / "outside"):
        directory.mkdir(parents=True)
        (directory / "adapter_config.json").write_text("{}")
        (directory / "adapter_model.safetensors").write_bytes(b"weights")
    return shelf


@pytest.fixture
def sources(shelf: Path) -> Sources:
    return Sources(MOUNTS, {"shelf": shelf, "disk": shelf, "gone": shelf / "missing"})


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None, tuple)


def link(target: str) -> Callable[[Path], None]:
    return lambda shelf: (shelf / "link").symlink_to(target)


def with_file(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    return lambda shelf: (make(shelf / "good" / name), None)[1]


def replaced(name: str, make: Callable[[Path], object]) -> Callable[[Path], None]:
    def prepare(shelf: Path) -> None:
        (shelf / "good" / name).unlink()
        make(shelf / "good" / name)

    return prepare


def nothing(_: Path) -> None:
    """The shelf as it is."""


HOSTILE: dict[str, tuple[Callable[[Path], None], str, str]] = {
    "dots": (nothing, "pvc://shelf/../outside", "UnsafeFile"),
    "dots inside": (nothing, "pvc://shelf/good/../../outside", "UnsafeFile"),
    "escaped dots": (nothing, "pvc://shelf/%2e%2e/outside", "UnsafeFile"),
    "escaped slashes": (nothing, "pvc://shelf/..%2foutside", "UnsafeFile"),
    "an escaped NUL": (nothing, "pvc://shelf/good%00", "UnsafeFile"),
    "a NUL": (nothing, "pvc://shelf/good\0", "UnsafeFile"),
    "an escaped letter": (nothing, "pvc://shelf/g%6fod", "UnsafeFile"),
    "an escaped letter of a repository": (nothing, "hf://acme/g%6fod", "UnsafeFile"),
    "an escaped letter of an archive": (nothing, "https://models.example/g%6fod.zip", "UnsafeFile"),
    "a query": (nothing, "https://models.example/good.zip?token=secret", "UnsafeFile"),
    "another claim": (nothing, "pvc://shelves/good", "SourceNotDeclared"),
    "a prefix of a claim's name": (nothing, "pvc://shelf-of-others/good", "SourceNotDeclared"),
    "a file outside the prefix": (nothing, "file:///etc", "SourceNotDeclared"),
    "dots after a prefix": (nothing, "file:///data/models/../../etc", "UnsafeFile"),
    "an unknown scheme": (nothing, "s3://example.org/good", "SourceNotDeclared"),
    "a missing directory": (nothing, "pvc://shelf/nothing", "NotFound"),
    "a file as a directory": (nothing, "pvc://shelf/good/adapter_config.json", "NotFound"),
    "a name without end": (nothing, "pvc://shelf/" + "a" * 300, "NotFound"),
    "a mount that is not there": (nothing, "pvc://gone/good", "SourceUnavailable"),
    "a link to a directory outside": (link("../outside"), "pvc://shelf/link", "UnsafeFile"),
    "a link to a directory inside": (link("good"), "pvc://shelf/link", "UnsafeFile"),
    "a link in circles": (link("link"), "pvc://shelf/link", "UnsafeFile"),
    "a link among the files": (
        replaced("adapter_model.safetensors", lambda path: path.symlink_to("../../outside/adapter_model.safetensors")),
        "pvc://shelf/good",
        "UnsafeFile",
    ),
    "a pipe among the files": (replaced("adapter_config.json", os.mkfifo), "pvc://shelf/good", "UnsafeFile"),
    "a directory among the files": (with_file("tokenizer.json", os.mkdir), "pvc://shelf/good", "UnsafeFile"),
    "pickles only": (
        replaced("adapter_model.safetensors", lambda path: path.with_suffix(".bin").write_bytes(b"pickle")),
        "pvc://shelf/good",
        "UnsafeFile",
    ),
    "no weights": (replaced("adapter_model.safetensors", nothing), "pvc://shelf/good", "NotAnAdapter"),
    "one folder too high": (nothing, "pvc://shelf/", "NotAnAdapter"),
}


@pytest.mark.parametrize("what", HOSTILE)
def test_a_hostile_source_is_refused(shelf: Path, sources: Sources, cache: Cache, what: str) -> None:
    prepare, uri, code = HOSTILE[what]
    prepare(shelf)
    with pytest.raises(GraftError) as caught:
        cache.copy(sources, uri, "adapter")
    assert caught.value.code == code
    assert uri in caught.value.message


PRIVATE = {
    # what may not be read, its mode, and where the message says that it lies
    "a file": ("good/adapter_model.safetensors", 0o600, "adapter_model.safetensors belongs to 0:0 with mode 0600"),
    "a directory": ("good", 0o700, "`good` belongs to 0:0 with mode 0700"),
    "a mount": ("", 0o700, "its mount belongs to 0:0 with mode 0700"),
    "files in a directory that may be listed alone": (
        "good",
        0o744,
        "adapter_config.json is in a directory that belongs to 0:0 with mode 0744",
    ),
}


@pytest.mark.skipif(os.geteuid() != 0, reason="files of another user are made by root")
@pytest.mark.parametrize("what", PRIVATE)
def test_what_the_pod_s_user_may_not_read_is_told_with_user_mode_and_path(what: str) -> None:
    """What a trainer that runs as root writes."""
    path, mode, told = PRIVATE[what]
    with tempfile.TemporaryDirectory() as name:
        public = Path(name)
        public.chmod(0o777)  # pytest's own are root's alone
        (public / "shelf/good").mkdir(parents=True)
        for file in ("adapter_config.json", "adapter_model.safetensors"):
            (public / "shelf/good" / file).write_text("{}")
        (public / "shelf" / path).chmod(mode)
        sources = Sources(MOUNTS, {"shelf": public / "shelf"})
        with as_user(65532), pytest.raises(GraftError) as caught:
            Cache(public / "cache", None, tuple).copy(sources, "pvc://shelf/good", "adapter")
    assert caught.value.code == "Unreadable"
    assert told in caught.value.what
    assert "this pod runs as uid 65532, groups " in caught.value.what
    assert "chmod -R a+rX" in str(caught.value.hint)


@contextlib.contextmanager
def as_user(uid: int) -> Iterator[None]:
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)


def test_the_folder_that_was_meant_is_named(sources: Sources, cache: Cache) -> None:
    with pytest.raises(GraftError, match="not an adapter") as caught:
        cache.copy(sources, "pvc://shelf", "adapter")
    assert "'good'" in caught.value.message


@pytest.mark.parametrize(
    ("names", "code"),
    [
        (["config.json", "model.safetensors"], None),
        (["config.json", "model.safetensors.index.json"], None),
        (["config.json", "consolidated.safetensors"], "NotAModel"),
        (["config.json", "pytorch_model.bin"], "UnsafeFile"),
        (["model.safetensors"], "NotAModel"),
        (["pytorch_model.bin"], "NotAModel"),
    ],
)
def test_what_is_no_model_is_copied_by_no_one_and_loaded_by_no_one(
    tmp_path: Path, names: list[str], code: str | None
) -> None:
    """One decision: what the engine could not load is not fetched either."""
    for name in names:
        (tmp_path / name).write_text("{}")
    checks = (lambda: select_files(names, "model", "pvc://shelf/base"), lambda: check_weights(tmp_path, "base"))
    for check in checks:
        if code is None:
            check()
            continue
        with pytest.raises(GraftError) as caught:
            check()
        assert caught.value.code == code


def test_an_adapter_is_no_model(sources: Sources, cache: Cache) -> None:
    with pytest.raises(GraftError) as caught:
        cache.copy(sources, "pvc://shelf/good", "model")
    assert caught.value.code == "NotAModel"


@pytest.mark.parametrize(
    "uri", ["pvc://shelf/good", "pvc://shelf/good/", "pvc://shelf//./good", "file:///data/models/good"]
)
def test_every_way_to_write_a_uri_leads_to_the_same_digest(sources: Sources, cache: Cache, uri: str) -> None:
    """The digest's definition, spelled out."""
    sums = [hashlib.sha256(content).hexdigest() for content in (b"{}", b"weights")]
    lines = f"adapter_config.json 2 {sums[0]}\nadapter_model.safetensors 7 {sums[1]}\n"
    expected = "sha256:" + hashlib.sha256(lines.encode()).hexdigest()
    assert cache.copy(sources, uri, "adapter").digest == expected
