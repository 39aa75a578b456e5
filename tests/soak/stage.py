"""A pod that serves, and what attackers bring to it."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler
from pathlib import Path

from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import CheckpointFile, Source
from graft_runtime.contract.config import EngineConfig, SourceMount
from graft_runtime.store.checkpoints import digest_of

from tests.support.bases import build_base
from tests.support.hostile_files import CONFIG, WEIGHTS, Workshop, archives
from tests.support.hub import Hub, Origin, make_certificate
from tests.support.pod_process import PodProcess

GOOD = ("alpha", "beta", "gamma")
"""The last has a tokenizer and a chat template of its own."""
VICTIM = "delta"
"""A good adapter, whose clients are the attackers."""
UNKNOWN = "sha256:" + "0" * 64
LIMITS = ("--cache-bytes", str(100 << 30), "--adapter-bytes", str(4 << 30))
"""As the chart has them."""
TRICKLED_BYTES, TRICKLES = 4 << 20, 8


class Stage:
    """A pod that serves, with what attackers bring ready to be served.

    Args:
        directory: for all files.
    """

    def __init__(self, directory: Path) -> None:
        base = build_base(directory / "base", "wide llama")
        workshop = Workshop(base, directory / "made")
        good = [workshop.good(name, seed) for seed, name in enumerate((*GOOD[:-1], VICTIM))]
        good.append(workshop.speaking(GOOD[-1], 9))
        self._cdn = Origin()
        self._hub = Hub(self._cdn)
        certificate = make_certificate(directory)
        self._web = Origin(certificate)
        self.pod = PodProcess(
            directory / "pod",
            sources=(
                SourceMount(name="shelf", kind="claim"),
                SourceMount(name="slow", kind="remote", uri_prefixes=("hf://slow/",), endpoint=self._hub.url),
            ),
            engine=EngineConfig(max_sequences=8, max_rank=16, max_mounted_adapters=24, max_sequence_length=2048),
        )
        self.pod.put("base", base)
        self._good = [self.pod.entry(adapter.name, adapter) for adapter in good]
        self._hostile = {
            "tokenizers": self._entries(workshop.tokenizers()),
            "templates": self._entries(workshop.templates()),
            "long_paths": self._entries(workshop.long_paths()),
            "costly": self._entries(workshop.costly()),
            "long_names": self._entries(workshop.long_names()),
            "sparse": [self.pod.entry(one.name, one, digest=UNKNOWN) for one in workshop.sparse()],
            "trickling": [self._trickle(number) for number in range(TRICKLES)],
            "packed": [self._packed(file, content) for file, content in archives().items()],
        }
        self._generation = 1
        self.pod.mount_set(self.pod.set_of(1, *self._good))
        self.pod.start("--allowed-network", "127.0.0.0/8", *LIMITS, variables={"SSL_CERT_FILE": str(certificate)})

    def close(self) -> None:
        if self.pod.process is not None and self.pod.process.poll() is None:
            self.pod.kill()
        for origin in (self._hub, self._cdn, self._web):
            origin.close()

    @property
    def digests(self) -> dict[str, str | None]:
        return {entry.name: entry.digest for entry in self._good}

    def names(self, files: str) -> list[str]:
        return [entry.name for entry in self._hostile[files]]

    @contextmanager
    def served(self, files: str | None) -> Iterator[None]:
        """Have the pod serve these adapters beside the good ones, until the block ends."""
        if files is None:
            yield
            return
        self._push(*self._hostile[files])
        yield
        self._push()

    def states(self, files: str) -> Counter[str]:
        """What the pod says of these adapters: their state, and the fault's code where there is one."""
        status = self.pod.status()
        assert status is not None
        names = self.names(files)
        return Counter(
            report.fault.code if report.fault else str(report.state)
            for report in status.adapters
            if report.name in names
        )

    def _push(self, *more: AdapterEntry) -> None:
        self._generation += 1
        reply = self.pod.push(self.pod.set_of(self._generation, *self._good, *more))
        assert reply.status == 200, reply.content

    def _entries(self, made: Sequence[Path]) -> list[AdapterEntry]:
        return [self.pod.entry(one.name, one) for one in made]

    def _trickle(self, number: int) -> AdapterEntry:
        """Make an adapter on the Hub whose weights come byte by byte."""
        files = {CONFIG: Hub.config, WEIGHTS: bytes([number]) * TRICKLED_BYTES}
        self._hub.put(f"slow/{number}", Hub.commit, files, "main")
        records = [
            CheckpointFile(path=path, size=len(content), sha256=_sha256(content)) for path, content in files.items()
        ]
        self._cdn.faults[f"/{_sha256(files[WEIGHTS])}"] = [_dripping(self._cdn)] * 1000
        source = Source(uri=f"hf://slow/{number}", revision=Hub.commit)
        return AdapterEntry(name=f"slow{number}", source=source, digest=digest_of(records))

    def _packed(self, file: str, content: bytes) -> AdapterEntry:
        self._web.files[f"/{file}"] = content
        return AdapterEntry(name=file.partition(".")[0], source=Source(uri=f"{self._web.url}/{file}"), digest=UNKNOWN)


def _sha256(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _dripping(origin: Origin) -> Callable[[BaseHTTPRequestHandler], None]:
    def drip(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(TRICKLED_BYTES))
        handler.end_headers()
        while not origin.stopping.wait(0.1):
            try:
                handler.wfile.write(b"x" * 4000)
            except OSError:
                break
        handler.close_connection = True

    return drip
