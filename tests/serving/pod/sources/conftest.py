"""Where sources and the cache of a test are: a Hub on loopback, with a token and without."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from graft_runtime.backoff import Backoff
from graft_runtime.contract.config import SourceMount
from graft_runtime.store.cache import Cache
from graft_runtime.store.network import Pace, parse_network
from graft_runtime.store.sources import Sources

from tests.support.hub import Hub

FAST = Pace(silent_seconds=2.0, free_seconds=2.0, bytes_per_second=100_000, tries=3, pauses=Backoff(0.01, 8.0))
LOOPBACK = (parse_network("127.0.0.0/8"),)


@pytest.fixture
def secret(tmp_path: Path, hub: Hub) -> Path:
    """The Secret of a source on the local Hub, as the kubelet mounts it."""
    directory = tmp_path / "secret"
    directory.mkdir()
    (directory / "token").write_text("hf_very_secret\n")
    (directory / "hosts").write_text(f"hub.example\n{hub.url.removeprefix('http://')}\n")
    return directory


@pytest.fixture
def sources(hub: Hub, secret: Path) -> Iterator[Sources]:
    """`hf://acme/…` is the local Hub with a token, `hf://open/…` the same without."""
    mounts = (
        SourceMount(name="acme", kind="remote", uri_prefixes=("hf://acme/",), endpoint=hub.url),
        SourceMount(name="open", kind="remote", uri_prefixes=("hf://open/",), endpoint=hub.url + "/"),
    )
    sources = Sources(mounts, {"acme": secret}, LOOPBACK, FAST)
    yield sources
    sources.close()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", None, tuple)
