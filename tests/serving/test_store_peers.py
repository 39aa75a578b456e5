"""Checkpoints from other pods: taken where every byte is what the digest says, and else given up for the source."""

from __future__ import annotations

import asyncio
import hashlib
import random
import threading
import time
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from ipaddress import ip_address
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.backoff import Backoff
from graft_runtime.contract.checkpoints import CheckpointFile, Source
from graft_runtime.contract.config import SourceMount
from graft_runtime.contract.control import CheckpointFiles, Peer, Peers
from graft_runtime.contract.ports import CONTROL_PORT
from graft_runtime.errors import GraftError
from graft_runtime.store import peers as store_peers
from graft_runtime.store.cache import Cache
from graft_runtime.store.checkpoints import digest_of
from graft_runtime.store.fetches import Fetches
from graft_runtime.store.network import Pace
from graft_runtime.store.peers import PeerPods
from graft_runtime.store.sources import Sources

from tests.support.shelf import embedder

FILES = {"adapter_config.json": b"{}", "adapter_model.safetensors": b"w" * 5000}
LIST = tuple(
    CheckpointFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest()) for name, data in FILES.items()
)
DIGEST = digest_of(LIST)
WEIGHTS = "adapter_model.safetensors"
PACE = Pace(silent_seconds=0.5, free_seconds=0.5, tries=2, pauses=Backoff(first_seconds=0.01, longest_seconds=0.01))

Answer = Callable[[BaseHTTPRequestHandler], None]


def say(handler: BaseHTTPRequestHandler, content: bytes, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {"Content-Length": str(len(content)), **headers}.items():
        handler.send_header(name, value)
    handler.end_headers()
    handler.wfile.write(content)


def honest(handler: BaseHTTPRequestHandler) -> None:
    last = handler.path.rpartition("/")[2]
    say(handler, FILES[last] if last in FILES else CheckpointFiles(files=LIST).canonical_json())


def with_weights(content: bytes) -> Answer:
    """An honest list, and other bytes than it says."""
    return lambda handler: say(handler, content) if handler.path.endswith(WEIGHTS) else honest(handler)


def listing(*files: CheckpointFile) -> Answer:
    return lambda handler: say(handler, CheckpointFiles(files=files).canonical_json())


def endless(handler: BaseHTTPRequestHandler) -> None:
    handler.send_response(200)
    handler.end_headers()
    while True:
        handler.wfile.write(b"x" * 65536)


def trickling(handler: BaseHTTPRequestHandler) -> None:
    if not handler.path.endswith(WEIGHTS):
        return honest(handler)
    handler.send_response(200)
    handler.send_header("Content-Length", str(len(FILES[WEIGHTS])))
    handler.end_headers()
    for _ in range(100):
        handler.wfile.write(b"w")
        handler.wfile.flush()
        time.sleep(0.05)
    return None


@pytest.fixture
def pods() -> Iterator[Callable[[Answer], Peer]]:
    """`pods(answer)`: a pod that answers so, on an address of its own; `peer.asked` has the paths."""
    servers: list[ThreadingHTTPServer] = []

    def start(answer: Answer) -> Peer:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                try:
                    if self.headers["Authorization"] == "Bearer t":
                        answer(self)
                    else:
                        say(self, b"", 401)
                except OSError:
                    self.close_connection = True

            def log_message(self, *_: Any) -> None:
                pass

        address = f"127.{random.randint(64, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
        server = ThreadingHTTPServer((address, CONTROL_PORT), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return Peer(address=ip_address(address), token="t")

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def cache(tmp_path: Path) -> Cache:
    return Cache(tmp_path / "cache", 1 << 20, tuple)


async def fetched(cache: Cache, *peers: Peer) -> bool:
    """Whether the pods have the checkpoint, and it is then in the cache as it should be."""
    known = PeerPods(cache, PACE)
    known.introduce(Peers(peers=peers))
    cached = await known.fetch(DIGEST, "adapter")
    known.close()
    if cached is None:
        return False
    assert {path.name: path.read_bytes() for path in cached.directory.iterdir()} == FILES
    assert cache.files(DIGEST) == CheckpointFiles(files=LIST), "it can be handed on"
    return True


async def test_a_checkpoint_comes_from_the_pod_that_has_it(cache: Cache, pods: Any) -> None:
    def nothing(handler: BaseHTTPRequestHandler) -> None:
        say(handler, b"", 404)

    assert await fetched(cache, pods(nothing), pods(honest))


async def test_folders_of_modules_come_from_another_pod(cache: Cache, pods: Any) -> None:
    files = embedder()
    listed = tuple(
        CheckpointFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in sorted(files.items())
    )

    def answer(handler: BaseHTTPRequestHandler) -> None:
        name = handler.path.removeprefix(f"/checkpoints/{digest_of(listed)}").removeprefix("/")
        say(handler, files[name] if name else CheckpointFiles(files=listed).canonical_json())

    known = PeerPods(cache, PACE)
    known.introduce(Peers(peers=(pods(answer),)))
    cached = await known.fetch(digest_of(listed), "model")
    known.close()
    assert cached is not None
    assert (cached.directory / "2_Dense" / "model.safetensors").read_bytes() == files["2_Dense/model.safetensors"]
    assert cache.files(cached.digest) == CheckpointFiles(files=listed), "it can be handed on"


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(with_weights(b"v" * 5000), id="other bytes"),
        pytest.param(with_weights(b"w" * 5001), id="more bytes"),
        pytest.param(with_weights(b"w" * 4999), id="fewer bytes"),
        pytest.param(listing(LIST[0]), id="another checkpoint"),
        pytest.param(listing(*LIST, CheckpointFile(path="..", size=1, sha256="0" * 64)), id="a path out of it"),
        pytest.param(lambda handler: say(handler, b"[]"), id="no list"),
        pytest.param(lambda handler: say(handler, b"x" * (2 << 20)), id="a list without end"),
        pytest.param(endless, id="no end"),
        pytest.param(trickling, id="byte by byte"),
        pytest.param(lambda handler: say(handler, b"", 302, Location="http://127.0.0.1:1/"), id="elsewhere"),
        pytest.param(lambda handler: say(handler, b"", 503), id="busy"),
        pytest.param(lambda handler: time.sleep(1.5), id="silent"),
    ],
)
async def test_a_pod_that_gives_anything_else_is_given_up(cache: Cache, pods: Any, answer: Answer) -> None:
    assert not await fetched(cache, pods(answer))
    assert cache.find(DIGEST) is None
    assert await fetched(cache, pods(answer), pods(honest)), "the next one is asked, and has room"


async def test_a_pod_that_refuses_us_is_not_asked_again_until_it_is_introduced(cache: Cache, pods: Any) -> None:
    known, peer = PeerPods(cache, PACE), pods(honest)
    known.introduce(Peers(peers=(peer.model_copy(update={"token": "old"}),)))
    assert await known.fetch(DIGEST, "adapter") is None
    assert known._known == []
    known.introduce(Peers(peers=(peer,)))
    assert await known.fetch(DIGEST, "adapter") is not None
    known.close()


class Pool:
    """Fetches of a pod whose sources are empty."""

    def __init__(self, tmp_path: Path, cache: Cache) -> None:
        (tmp_path / "shelf").mkdir()
        sources = Sources((SourceMount(name="shelf", kind="claim"),), {"shelf": tmp_path / "shelf"})
        self.peers, self.told, self.failed = PeerPods(cache, PACE), list[str](), asyncio.Event()
        self.fetches = Fetches(sources, cache, self.peers, wait_seconds=lambda code, attempt: 0.01)

    async def fetch(self, kind: Any = "adapter", digest: str | None = DIGEST) -> str | None:
        source = Source(uri="pvc://shelf/gone")
        cached = await self.fetches.fetch_until_there(source, kind, digest, "gone", self._failed)
        return cached.digest if cached is not None else None

    def _failed(self, error: GraftError) -> None:
        self.told.append(error.code.value)
        self.failed.set()


@pytest.fixture
async def pool(tmp_path: Path, cache: Cache, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(store_peers, "BOOT_SECONDS", 0.1)
    found = Pool(tmp_path, cache)
    yield found
    await found.fetches.close()


async def test_other_pods_are_asked_before_the_source(pool: Pool, pods: Any) -> None:
    pool.peers.introduce(Peers(peers=(pods(honest),)))
    assert await pool.fetch() == DIGEST
    assert pool.told == []


async def test_a_pod_that_has_just_started_waits_for_its_introduction(pool: Pool, pods: Any) -> None:
    fetching = asyncio.create_task(pool.fetch())
    await asyncio.sleep(0)
    pool.peers.introduce(Peers(peers=(pods(honest),)))
    assert await fetching == DIGEST
    assert pool.told == []


async def test_pods_that_are_introduced_later_have_what_the_source_has_not(pool: Pool, pods: Any) -> None:
    fetching = asyncio.create_task(pool.fetch())
    await pool.failed.wait()
    pool.peers.introduce(Peers(peers=(pods(honest),)))
    assert await fetching == DIGEST
    assert set(pool.told) == {"NotFound"}


async def test_a_base_of_no_named_digest_is_the_one_that_the_others_serve(pool: Pool, pods: Any) -> None:
    files = {"config.json": b"{}", "model.safetensors": b"m" * 100}
    listed = tuple(
        CheckpointFile(path=name, size=len(data), sha256=hashlib.sha256(data).hexdigest())
        for name, data in files.items()
    )

    def serve(handler: BaseHTTPRequestHandler) -> None:
        last = handler.path.rpartition("/")[2]
        say(handler, files[last] if last in files else CheckpointFiles(files=listed).canonical_json())

    fetching = asyncio.create_task(pool.fetch("model", None))
    await pool.failed.wait()
    pool.peers.introduce(Peers(peers=(pods(serve),), base=digest_of(listed)))
    assert await fetching == digest_of(listed)
