"""A cache that several pods share: each checkpoint is copied once, and stays while any of them uses it."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.store.cache import Cache
from graft_runtime.store.sources import Sources

from tests.support.shelf import ADAPTER_BYTES, filled


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return filled(tmp_path / "shelf", settled_seconds=0)


class Disk:
    """Makes files, slowly, and counts them."""

    def __init__(self) -> None:
        self.made: list[str] = []
        self.may_go_on = threading.Event()
        self.may_go_on.set()

    def create(self, path: Path, mode: str) -> IO[bytes]:
        self.made.append(path.name)
        self.may_go_on.wait()
        return io.FileIO(path, mode)


def pod(tmp_path: Path, name: str, capacity: int | None = None, *used: str, disk: Disk | None = None) -> Cache:
    return Cache(tmp_path / "cache", capacity, lambda: used, pod=name, create=(disk or Disk()).create)


def test_what_one_pod_copied_the_others_have(tmp_path: Path, sources: Sources) -> None:
    first, second = pod(tmp_path, "1"), pod(tmp_path, "2")
    copied = first.copy(sources, "pvc://shelf/a", "adapter")
    assert second.find(copied.digest) is None
    found = second.look(copied.digest)
    assert found == second.find(copied.digest)
    assert found is not None
    assert (found.directory, found.bytes) == (copied.directory, ADAPTER_BYTES)
    assert second.files(copied.digest) == first.files(copied.digest)
    assert second.look("sha256:" + "0" * 64) is None
    assert second.look("sha256:..") is None


def test_two_pods_of_one_name_share_nothing(tmp_path: Path) -> None:
    pod(tmp_path, "1")
    with pytest.raises(GraftError, match="the shared cache can't be used"):
        pod(tmp_path, "1")


def test_pods_that_want_the_same_at_once_copy_it_once(tmp_path: Path, sources: Sources) -> None:
    disk = Disk()
    disk.may_go_on.clear()
    pods = [pod(tmp_path, str(number), disk=disk) for number in range(3)]
    with ThreadPoolExecutor() as threads:
        copies = [threads.submit(cache.copy, sources, "pvc://shelf/a", "adapter") for cache in pods]
        disk.may_go_on.set()
        assert len({copy.result().digest for copy in copies}) == 1
    assert sorted(disk.made) == ["adapter_config.json", "adapter_model.safetensors"]


def test_what_another_pod_uses_stays(tmp_path: Path, sources: Sources) -> None:
    first, second = pod(tmp_path, "1", ADAPTER_BYTES), pod(tmp_path, "2", ADAPTER_BYTES)
    copied = first.copy(sources, "pvc://shelf/a", "adapter")
    with pytest.raises(GraftError) as caught:
        second.copy(sources, "pvc://shelf/b", "adapter")
    assert caught.value.code == "NoCapacity"
    assert copied.directory.is_dir()


COPIES_AND_HANGS = """
import sys, time
from pathlib import Path
from graft_runtime.contract.config import SourceMount
from graft_runtime.store.cache import Cache
from graft_runtime.store.sources import Sources

def create(path, mode):
    if path.parent.name == "1":
        print("hangs", flush=True)
        time.sleep(1000)
    return open(path, mode, buffering=0)

root = Path(sys.argv[1])
sources = Sources((SourceMount(name="shelf", kind="claim"),), {"shelf": root / "shelf"}, settled_seconds=0)
cache = Cache(root / "cache", None, tuple, pod="killed", create=create)
cache.copy(sources, "pvc://shelf/a", "adapter")
cache.copy(sources, "pvc://shelf/b", "adapter")
"""


def test_a_pod_that_is_killed_keeps_nothing_from_the_others(tmp_path: Path, sources: Sources) -> None:
    """It has `a`, and is about to copy `b`."""
    process = subprocess.Popen([sys.executable, "-c", COPIES_AND_HANGS, str(tmp_path)], stdout=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stdout.readline() == b"hangs\n"
    process.kill()
    process.wait()
    process.stdout.close()
    assert [path.name for path in (tmp_path / "cache" / "partial").iterdir()] == ["killed"]

    other = pod(tmp_path, "1", ADAPTER_BYTES)
    assert [path.name for path in (tmp_path / "cache" / "partial").iterdir()] == ["1"], "what it left is gone"
    copied = other.copy(sources, "pvc://shelf/b", "adapter")
    assert [path.name for path in (tmp_path / "cache" / "sha256").iterdir()] == [copied.digest[7:]], "`a` made room"


def test_a_pod_that_starts_again_still_has_what_it_used(tmp_path: Path, sources: Sources) -> None:
    program = COPIES_AND_HANGS.replace('cache.copy(sources, "pvc://shelf/b", "adapter")', "")
    subprocess.run([sys.executable, "-c", program, str(tmp_path)], check=True)
    again, other = pod(tmp_path, "killed", ADAPTER_BYTES), pod(tmp_path, "2", ADAPTER_BYTES)
    (digest,) = (f"sha256:{path.name}" for path in (tmp_path / "cache" / "sha256").iterdir())
    with pytest.raises(GraftError):
        other.copy(sources, "pvc://shelf/b", "adapter")
    assert again.find(digest) is not None


def test_what_nobody_needs_any_more_makes_room(
    tmp_path: Path, sources: Sources, monkeypatch: pytest.MonkeyPatch
) -> None:
    needed = Cache(tmp_path / "elsewhere", None, tuple).copy(sources, "pvc://shelf/b", "adapter").digest
    cache = pod(tmp_path, "1", ADAPTER_BYTES, needed)
    gone = cache.copy(sources, "pvc://shelf/a", "adapter")
    monkeypatch.setattr("graft_runtime.store.shared_contents.KEPT_SECONDS", -1.0)
    assert cache.copy(sources, "pvc://shelf/b", "adapter").digest == needed
    assert not gone.directory.exists()
    assert cache.find(gone.digest) is None
    assert cache.look(needed) is not None
    with pytest.raises(GraftError):
        cache.copy(sources, "pvc://shelf/a", "adapter")
