"""A pod's runtime as a process of its own, with the real engine, on a loopback address of its own."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from graft_runtime.contract.adapter_set import ADAPTER_SET_FILE, AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import RUNTIME_CONFIG_FILE, BaseModelConfig, EngineConfig, RuntimeConfig, SourceMount
from graft_runtime.contract.control import AdapterInspection, InspectRequest
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.store.cache import Cache
from graft_runtime.store.sources import Sources

from tests.support.waiting import wait_until

KEY_ID = "0123456789abcdef"
POD_UID = "pod-uid"
START_SECONDS = 180.0


@dataclass
class Reply:
    """An HTTP answer."""

    status: int
    headers: dict[str, str]
    """By lower-case name."""
    content: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.content)


def call(
    address: str, port: int, method: str, path: str, body: Any = None, *, seconds: float = 60, **headers: str
) -> Reply:
    """One request on a connection of its own; `body` is bytes or becomes JSON. Raises TimeoutError after `seconds`."""
    content = body if isinstance(body, bytes | None) else json.dumps(body).encode()
    connection = http.client.HTTPConnection(address, port, timeout=seconds)
    with contextlib.closing(connection):
        names = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, content, {"Content-Type": "application/json", **names})
        answer = connection.getresponse()
        found = {name.lower(): value for name, value in answer.getheaders()}
        return Reply(answer.status, found, answer.read())


class PodProcess:
    """`graft-runtime serve` and what surrounds it in a pod.

    Args:
        directory: for its mounts; what is under `shelf` in it is the claim `shelf`.
        config: what RuntimeConfig differs in from the default.
    """

    def __init__(self, directory: Path, **config: Any) -> None:
        self.directory = directory
        self.shelf = directory / "shelf"
        for name in ("config", "adapter-set", "keys", "cache", "state", "shelf"):
            (directory / name).mkdir(parents=True, exist_ok=True)
        base = BaseModelConfig(name="tiny", source=Source(uri="pvc://shelf/base"), dtype="float32")
        engine = EngineConfig(max_sequences=8, max_rank=16, max_mounted_adapters=8)
        options = {
            "pool_uid": "pool",
            "base_model": base,
            "engine": engine,
            "sources": (SourceMount(name="shelf", kind="claim"),),
            "drain_seconds": 20,
        }
        self.config = RuntimeConfig(**(options | config))
        (directory / "config" / RUNTIME_CONFIG_FILE).write_bytes(self.config.canonical_json())
        self.address = f"127.{random.randint(64, 250)}.{random.randint(1, 250)}.{random.randint(2, 250)}"
        self._key = Ed25519PrivateKey.generate()
        public = self._key.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )
        (directory / "keys" / f"{KEY_ID}.pem").write_bytes(public)
        self._log = directory / "log"
        self.process: subprocess.Popen[bytes] | None = None

    # what it is given

    def put(self, name: str, checkpoint: Path) -> Source:
        """Puts a checkpoint on the shelf; its source."""
        (self.shelf / name).parent.mkdir(exist_ok=True)
        if not (self.shelf / name).exists():
            subprocess.run(["cp", "-r", str(checkpoint), str(self.shelf / name)], check=True)
        return Source(uri=f"pvc://shelf/{name}")

    def digest(self, source: Source) -> str:
        """Of an adapter on the shelf, by the code of the store."""
        cache = Cache(self.directory / "digests", None, tuple)
        return cache.copy(Sources(self.config.sources, {"shelf": self.shelf}), source.uri, "adapter").digest

    def entry(self, name: str, checkpoint: Path, **fields: Any) -> AdapterEntry:
        """An entry of an adapter set, with its digest."""
        source = self.put(f"{name}-{checkpoint.parent.name}", checkpoint)
        if "digest" not in fields:
            fields["digest"] = self.digest(source)
        return AdapterEntry(name=name, source=source, **fields)

    def set_of(self, generation: int, *entries: AdapterEntry, **fields: Any) -> AdapterSet:
        options = {"pool_uid": "pool", "config_hash": self.config.config_hash()} | fields
        return AdapterSet(generation=generation, adapters=entries, **options)

    def mount_set(self, adapter_set: AdapterSet) -> None:
        (self.directory / "adapter-set" / ADAPTER_SET_FILE).write_bytes(adapter_set.to_gzip())

    # its life

    def start(
        self, *more: str, program: tuple[str, ...] = ("-m", "graft_runtime"), variables: Mapping[str, str] | None = None
    ) -> None:
        """Start it.

        Args:
            more: arguments beside the usual ones.
            program: another way for Python to start the runtime.
            variables: of the environment, beside this process's.
        """
        directories = ("config", "adapter-set", "keys", "cache", "state")
        arguments = [f"--{name}-directory={self.directory / name}" for name in directories]
        arguments += ["--bind-address", self.address, "--pod-uid", POD_UID, "--source-mount", "shelf", str(self.shelf)]
        with self._log.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, *program, "serve", *arguments, *more],
                stderr=log,
                env={**os.environ, "OMP_NUM_THREADS": "1", **(variables or {})},
            )

    def wait_ready(self, seconds: float = START_SECONDS) -> None:
        def ready() -> bool:
            assert self.process is not None
            assert self.process.poll() is None, self.log
            return self.probe("/readyz") == 200

        wait_until(ready, lambda: f"the pod is ready:\n{self.log}", seconds)

    def probe(self, path: str) -> int:
        """The status of a probe; 0 when nobody listens."""
        try:
            return self.get(path).status
        except OSError:
            return 0

    @property
    def log(self) -> str:
        return self._log.read_text()

    @property
    def engine_pid(self) -> int:
        assert self.process is not None
        children = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text().split()
        return next(pid for pid in map(int, children) if b"graft_runtime.engine" in _command_line(pid))

    def kill(self) -> None:
        """The whole container at once, as a node would after the grace period."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def end(self, seconds: float = 30.0) -> int:
        """SIGTERM; the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)

    # its ports

    def get(self, path: str, request_id: str = "", *, seconds: float = 60) -> Reply:
        port = 8000 if path.startswith("/v1/") else 8002
        return call(self.address, port, "GET", path, seconds=seconds, X_Request_Id=request_id)

    def get_with_key(self, path: str, key: str) -> Reply:
        """One request to the API port with an API key."""
        return call(self.address, 8000, "GET", path, Authorization=f"Bearer {key}")

    def post(self, path: str, body: Any, *, seconds: float = 60) -> Reply:
        return self.ask("POST", path, body, seconds=seconds)

    def ask(self, method: str, path: str, body: Any = None, *, seconds: float = 60, **headers: str) -> Reply:
        """Ask the API port."""
        return call(self.address, 8000, method, path, body, seconds=seconds, **headers)

    def complete(self, model: str, prompt: Any = "hello", *, seconds: float = 60, **fields: Any) -> Reply:
        """Greedy, 8 tokens."""
        body = {"model": model, "prompt": prompt, "temperature": 0, "max_tokens": 8} | fields
        return self.post("/v1/completions", body, seconds=seconds)

    @contextlib.contextmanager
    def stream(self, model: str, **fields: Any) -> Iterator[http.client.HTTPResponse]:
        """A streamed answer of 200 tokens whose status has come."""
        body = {"model": model, "prompt": "hello", "temperature": 0, "max_tokens": 200, "stream": True} | fields
        connection = http.client.HTTPConnection(self.address, 8000, timeout=60)
        with contextlib.closing(connection):
            connection.request("POST", "/v1/completions", json.dumps(body), {"Content-Type": "application/json"})
            response = connection.getresponse()
            assert response.status == 200, response.read()
            with contextlib.closing(response):
                yield response

    def text(self, model: str, **fields: Any) -> str:
        reply = self.complete(model, **fields)
        assert reply.status == 200, reply.content
        return str(reply.json["choices"][0]["text"])

    def token(self, **claims: Any) -> str:
        now = int(time.time())
        options = {"iss": "graft-operator", "aud": POD_UID, "iat": now, "exp": now + 240} | claims
        return jwt.encode(options, self._key, algorithm="EdDSA", headers={"kid": KEY_ID})

    def control(self, method: str, path: str, body: Any = None, token: str | None = None) -> Reply:
        authorization = f"Bearer {self.token() if token is None else token}"
        return call(self.address, 8001, method, path, body, Authorization=authorization)

    def push(self, adapter_set: AdapterSet) -> Reply:
        return self.control("PUT", "/adapter-set", adapter_set.canonical_json())

    def status(self, boot: str = "", since: int = -1, wait: int = 0) -> RuntimeStatus | None:
        reply = self.control("GET", f"/status?boot={boot}&since={since}&wait={wait}")
        assert reply.status in {200, 204}, reply.content
        return RuntimeStatus.read(reply.content) if reply.status == 200 else None

    def inspect(self, source: Source) -> AdapterInspection:
        """Return what a dry run tells, which is asked for until it is there."""
        body = InspectRequest(source=source).canonical_json()
        reply: Reply = wait_until(lambda: _unless_busy(self.control("POST", "/inspect", body)), seconds=100)
        assert reply.status == 200, reply.content
        return AdapterInspection.read(reply.content)

    def report(self, name: str) -> Any:
        """What the status says of an adapter now; None when nothing."""
        status = self.status()
        assert status is not None
        return next((report for report in status.adapters if report.name == name), None)


def _unless_busy(reply: Reply) -> Any:
    return reply if reply.status != 503 else None


def _command_line(pid: int) -> bytes:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    except OSError:
        return b""
