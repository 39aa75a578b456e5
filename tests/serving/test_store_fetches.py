"""Fetches: one copy for those who want the same, nobody waits for slow hosts, and what failed is tried again."""

from __future__ import annotations

import asyncio
import threading
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.checkpoints import Source
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.checkpoints import Kind
from graft_runtime.store.fetches import Fetches, retry_seconds
from graft_runtime.store.peers import PeerPods
from graft_runtime.store.sources import Sources

from tests.support.shelf import filled, write_adapter


@pytest.fixture
def sources(tmp_path: Path) -> Sources:
    return filled(tmp_path / "shelf")


class CountingCache(Cache):
    """A cache that notes what it is told to copy."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.copied: list[str] = []

    def copy(self, sources: Sources, uri: str, kind: Kind, revision: str | None = None) -> Cached:
        self.copied.append(uri)
        return super().copy(sources, uri, kind, revision)


async def test_callers_at_the_same_time_share_one_copy(tmp_path: Path, sources: Sources) -> None:
    cache = CountingCache(tmp_path / "cache", None, tuple)
    fetches = Fetches(sources, cache, PeerPods(cache))
    source = Source(uri="pvc://shelf/a")
    found = await asyncio.gather(*(fetches.resolve(source, "adapter") for _ in range(5)))
    assert len(set(found)) == 1
    assert len(cache.copied) == 1
    again = await fetches.fetch(source, "adapter", found[0].digest, "a")
    assert (again, len(cache.copied)) == (found[0], 1), "what is in the cache is not fetched"
    await fetches.close()


class StuckCache(Cache):
    """A cache to which hosts whose name begins with `slow` never deliver."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.let_go = threading.Event()
        self.stuck: list[str] = []

    def copy(self, sources: Sources, uri: str, kind: Kind, revision: str | None = None) -> Cached:
        if uri.startswith("https://slow"):
            self.stuck.append(uri)
            self.let_go.wait()
            raise GraftError(ErrorCode.SOURCE_UNAVAILABLE, "it was slow")
        if uri.startswith("https://"):
            return Cached("sha256:" + "0" * 64, Path(), 0)
        return super().copy(sources, uri, kind, revision)


@pytest.mark.parametrize("hosts", [1, 8])
async def test_slow_hosts_keep_nobody_else_waiting(tmp_path: Path, sources: Sources, hosts: int) -> None:
    cache = StuckCache(tmp_path / "cache", None, tuple)
    fetches = Fetches(sources, cache, PeerPods(cache))
    uris = [f"https://slow{at % hosts}.example/{at}.zip" for at in range(8 * hosts)]
    slow = [asyncio.create_task(fetches.resolve(Source(uri=uri), "adapter")) for uri in uris[::2]]
    slow += [asyncio.create_task(fetches.fetch(Source(uri=uri), "adapter", None, uri)) for uri in uris[1::2]]
    others = Source(uri="pvc://shelf/a"), Source(uri="https://quick.example/a.zip")
    async with asyncio.timeout(30):
        for source in others:
            await fetches.resolve(source, "adapter")
        await fetches.fetch(Source(uri="pvc://shelf/b"), "adapter", None, "b")
        await fetches.fetch(Source(uri="https://fast.example/a.zip"), "adapter", None, "a")
        with pytest.raises(GraftError, match="model"):
            await fetches.fetch(Source(uri="pvc://shelf/a"), "model", None, "base")
    assert len(cache.stuck) <= 4 * hosts
    cache.let_go.set()
    assert all(isinstance(ended, GraftError) for ended in await asyncio.gather(*slow, return_exceptions=True))
    assert len(cache.stuck) == len(uris), "those that waited had their turn"
    await fetches.close()


async def test_other_bytes_than_named_are_refused(tmp_path: Path, sources: Sources) -> None:
    cache = Cache(tmp_path / "cache", None, tuple)
    fetches = Fetches(sources, cache, PeerPods(cache))
    with pytest.raises(GraftError) as caught:
        await fetches.fetch(Source(uri="pvc://shelf/a"), "adapter", "sha256:" + "0" * 64, "billing")
    assert caught.value.code == "DigestMismatch"
    assert "`billing`" in caught.value.message
    await fetches.close()


async def test_a_source_that_comes_late_is_fetched_in_the_end(tmp_path: Path, sources: Sources) -> None:
    cache, told = Cache(tmp_path / "cache", None, tuple), list[str]()
    fetches = Fetches(sources, cache, PeerPods(cache), wait_seconds=lambda code, attempt: 0.001)

    def failed(error: GraftError) -> None:
        told.append(error.code.value)
        write_adapter(tmp_path / "shelf" / "late", "l")

    cached = await fetches.fetch_until_there(Source(uri="pvc://shelf/late"), "adapter", None, "late", failed)
    assert cached is not None
    assert told == ["NotFound"]
    await fetches.close()


async def test_what_cannot_get_better_is_not_tried_again(tmp_path: Path, sources: Sources) -> None:
    cache, told = Cache(tmp_path / "cache", None, tuple), list[GraftError]()
    fetches = Fetches(sources, cache, PeerPods(cache))
    assert await fetches.fetch_until_there(Source(uri="pvc://no/a"), "adapter", None, "a", told.append) is None
    assert [error.code for error in told] == ["SourceNotDeclared"]
    await fetches.close()


def test_the_wait_grows_and_is_bounded() -> None:
    waits = [retry_seconds(ErrorCode.SOURCE_UNAVAILABLE, attempt) for attempt in (0, 1, 2, 50)]
    assert waits == [1, 2, 4, 60]
    assert retry_seconds(ErrorCode.CORRUPT, 0) is None
