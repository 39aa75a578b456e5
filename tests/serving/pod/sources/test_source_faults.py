"""A pod whose sources and disk fail in every way: typed reasons, nothing half-written is loaded, the others go on."""

from __future__ import annotations

import hashlib
import resource
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import CheckpointFile, Source
from graft_runtime.contract.config import SourceMount
from graft_runtime.contract.status import AdapterReport, AdapterState
from graft_runtime.errors import ErrorCode
from graft_runtime.store.checkpoints import digest_of

from tests.support.waiting import wait_until

PLAIN = (str(Path(__file__).parents[1] / "plain_engine.py"),)
"""What sources and disk do is the same on any engine, and this one starts soon."""
CACHE_BYTES = 2 << 20
WEIGHTS = "adapter_model.safetensors"


class Shop:
    """A pod, and a Hub that its adapters come from."""

    def __init__(self, pod: Any, hub: Any) -> None:
        self.pod, self.hub = pod, hub
        self._entries: dict[str, AdapterEntry] = {}
        self._generation = 1

    def offer(self, name: str, files: dict[str, bytes], owner: str = "acme") -> str:
        """Puts an adapter on the Hub; the path of its weights on the other server."""
        self.hub.put(f"{owner}/{name}", self.hub.commit, files, "main")
        return f"/{_sha256(files[WEIGHTS])}"

    def order(self, name: str, files: dict[str, bytes], place: str = "hf://acme") -> None:
        """Has the pod serve it."""
        digest = digest_of(
            CheckpointFile(path=path, size=len(data), sha256=hashlib.sha256(data).hexdigest())
            for path, data in files.items()
        )
        revision = self.hub.commit if place.startswith("hf:") else None
        source = Source(uri=f"{place}/{name}", revision=revision)
        self._entries[name] = AdapterEntry(name=name, source=source, digest=digest)
        self._generation += 1
        assert self.pod.push(self.pod.set_of(self._generation, *self._entries.values())).status == 200

    def cancel(self, name: str) -> None:
        del self._entries[name]
        self._generation += 1
        self.pod.push(self.pod.set_of(self._generation, *self._entries.values()))

    def fault(self, name: str) -> Any:
        return wait_until(lambda: (found := self.pod.report(name)) and found.fault)

    def ready(self, name: str) -> AdapterReport:
        found: AdapterReport = wait_until(lambda: (found := self.pod.report(name)) and found.ready and found)
        return found

    def cached(self) -> set[str]:
        """Digests on the pod's disk; every one whole and what its name says."""
        found = set()
        for directory in (self.pod.directory / "cache" / "sha256").iterdir():
            records = [
                CheckpointFile(path=path.name, size=path.stat().st_size, sha256=_sha256(path.read_bytes()))
                for path in directory.iterdir()
            ]
            assert digest_of(records) == f"sha256:{directory.name}"
            found.add(f"sha256:{directory.name}")
        return found

    def digest(self, name: str) -> str | None:
        return self._entries[name].digest

    def is_cached(self, name: str) -> bool:
        return self.digest(name) in self.cached()


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


@pytest.fixture
def shop(hub: Any, secret: Path, make_pod: Callable[..., Any]) -> Iterator[Shop]:
    slow_host = hub.url.replace("127.0.0.1", "localhost")  # another host, for what its name tells
    pod = make_pod(
        sources=(
            SourceMount(name="shelf", kind="claim"),
            SourceMount(name="acme", kind="remote", uri_prefixes=("hf://acme/",), endpoint=hub.url),
            SourceMount(name="slow", kind="remote", uri_prefixes=("hf://slow/",), endpoint=slow_host),
        ),
        cache_bytes=CACHE_BYTES,
    )
    pod.mount_set(pod.set_of(1))
    pod.start("--source-mount", "acme", str(secret), "--allowed-network", "127.0.0.0/8", program=PLAIN)
    pod.wait_ready()
    yield Shop(pod, hub)
    pod.kill()


@pytest.fixture
def files(make_adapter: Callable[..., Path]) -> Callable[[str], dict[str, bytes]]:
    """`files(name)`: of an adapter of about 100 KB."""

    def make(name: str) -> dict[str, bytes]:
        directory = make_adapter(name, r=16)
        names = ("adapter_config.json", WEIGHTS)
        return {name: (directory / name).read_bytes() for name in names}

    return make


def test_sources_that_fail_and_a_pod_that_goes_on(shop: Shop, files: Callable[[str], dict[str, bytes]]) -> None:
    pod, hub = shop.pod, shop.hub
    good, cut, changed, slow, large = [files(name) for name in ("good", "cut", "changed", "slow", "large")]

    # ten times what the cache holds
    huge = {**good, WEIGHTS: bytes(10 * CACHE_BYTES)}
    shop.offer("huge", huge)
    shop.order("huge", huge)
    assert (shop.fault("huge").code, shop.is_cached("huge")) == (ErrorCode.NO_CAPACITY, False)
    reply = pod.complete("huge")
    assert (reply.status, reply.json["error"]["code"]) == (503, "NoCapacity")
    shop.cancel("huge")

    # slow: the others do not wait for them
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(slow[WEIGHTS]) + 1))
        handler.end_headers()
        while not hub.cdn.stopping.wait(0.05):
            try:
                handler.wfile.write(b"x")
            except OSError:
                break
        handler.close_connection = True

    slow_ones = {f"slow-{number}": slow | {WEIGHTS: slow[WEIGHTS] + bytes([number])} for number in range(8)}
    for name, content in slow_ones.items():
        hub.cdn.faults[shop.offer(name, content, "slow")] = [drip] * 9
        shop.order(name, content, "hf://slow")
    shop.offer("good", good)
    shop.order("good", good)
    claimed = files("claimed")
    (pod.shelf / "claimed").mkdir()
    for file, data in claimed.items():
        (pod.shelf / "claimed" / file).write_bytes(data)
    shop.order("claimed", claimed, "pvc://shelf")
    for name in ("good", "claimed"):
        assert shop.ready(name).state in {AdapterState.MOUNTED, AdapterState.CACHED}
    assert {pod.report(name).state for name in slow_ones} == {AdapterState.FETCHING}

    # cut, and read on from where it broke
    path = shop.offer("cut", cut)
    hub.cdn.faults[path] = [hub.cut(cut[WEIGHTS], 50_000)]
    shop.order("cut", cut)
    shop.ready("cut")
    assert [asked.headers.get("range") for asked in hub.cdn.asked if asked.path == path][1]

    # changed between its parts: what came first is not put together with what came then
    path = shop.offer("changed", changed)
    hub.cdn.faults[path] = [hub.cut(changed[WEIGHTS], 50_000)]
    hub.cdn.files[path] = changed[WEIGHTS][::-1]
    shop.order("changed", changed)
    fault = shop.fault("changed")
    assert fault.code in {ErrorCode.SOURCE_UNAVAILABLE, ErrorCode.DIGEST_MISMATCH}
    assert not shop.is_cached("changed")
    hub.cdn.files[path] = changed[WEIGHTS]
    shop.ready("changed")

    # a disk that is full, until it is not
    shop.offer("large", large)
    before = resource.prlimit(pod.process.pid, resource.RLIMIT_FSIZE)
    resource.prlimit(pod.process.pid, resource.RLIMIT_FSIZE, (60_000, before[1]))
    shop.order("large", large)
    assert (shop.fault("large").code, shop.is_cached("large")) == (ErrorCode.NO_CAPACITY, False)
    resource.prlimit(pod.process.pid, resource.RLIMIT_FSIZE, before)
    shop.ready("large")

    for name in ("good", "cut", "changed", "large"):
        assert pod.complete(name).headers["x-graft-adapter-digest"] == shop.digest(name)
    assert {pod.report(name).state for name in slow_ones} == {AdapterState.FETCHING}
    assert not any(shop.is_cached(name) for name in slow_ones)
