"""The servers that `engine.py` measures: pods of ours, static batches of Transformers and PEFT, vLLM on a CPU.

Each is a process group of its own on the loopback address. Only one runs at a time: the others are stopped by a signal,
so that what they do while nobody asks takes nothing from the one that is measured.
"""

from __future__ import annotations

import http.client
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from engine_load import Client
from graft_runtime.contract.adapter_set import ADAPTER_SET_FILE, AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import RUNTIME_CONFIG_FILE, BaseModelConfig, EngineConfig, RuntimeConfig, SourceMount
from graft_runtime.store.cache import Cache
from graft_runtime.store.sources import Sources

ADDRESS = "127.0.0.1"
BASE = "base"
SHELF = "shelf"
ENDING_SECONDS = 10.0
POLLED_SECONDS = 0.2


class FailedError(Exception):
    """A server did not come up."""


class Server:
    """One server in a process group of its own.

    Args:
        name: how lines of progress call it.
        command: that starts it.
        directory: where its output goes, in a file `log`.
        ready: the path that answers 200 once it serves.
        address: where it listens.
        ports: of requests, and of `ready`.
        environment: beside this process's own.
        more: what each request's body has beside the usual fields.
    """

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        directory: Path,
        *,
        ready: str,
        ports: tuple[int, int],
        address: str = ADDRESS,
        environment: Mapping[str, str] | None = None,
        more: dict[str, object] | None = None,
    ) -> None:
        self.name, self._ready, self._address, self._log = name, ready, address, directory / "log"
        self._probe_port = ports[1]
        self.client = Client(address, ports[0], more)
        directory.mkdir(exist_ok=True)
        with self._log.open("wb") as output:
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    def wait(self, deadline: float) -> None:
        """Wait until it serves, then stop it. Raises FailedError when that takes beyond this time."""
        while not self._serves():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise FailedError(f"{self.name} does not serve; its last lines:\n{self._last_lines()}")
            time.sleep(POLLED_SECONDS)
        self._signal(signal.SIGSTOP)

    @contextmanager
    def awake(self) -> Iterator[Client]:
        """Let it run inside."""
        self._signal(signal.SIGCONT)
        try:
            yield self.client
        finally:
            self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """End it and all that it started."""
        self._signal(signal.SIGKILL)
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(ENDING_SECONDS)

    def _signal(self, number: signal.Signals) -> None:
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, number)

    def _serves(self) -> bool:
        connection = http.client.HTTPConnection(self._address, self._probe_port, timeout=5)
        try:
            connection.request("GET", self._ready)
            return connection.getresponse().status == 200
        except (OSError, http.client.HTTPException):
            return False
        finally:
            connection.close()

    def _last_lines(self) -> str:
        return "\n".join(self._log.read_text(errors="replace").splitlines()[-20:])


def free_port() -> int:
    """Return a port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind((ADDRESS, 0))
        return int(probe.getsockname()[1])


def start_pod(name: str, directory: Path, shelf: Path, adapters: Sequence[str], *, limits: EngineConfig) -> Server:
    """Start a pod's runtime.

    Args:
        name: of the server.
        directory: for the server's own files, to make.
        shelf: holds the base as `base`, and each adapter under its name.
        adapters: that it serves.
        limits: of its engine.
    """
    places = {part: directory / part for part in ("config", "adapter-set", "keys", "cache", "state")}
    for place in places.values():
        place.mkdir(parents=True)
    config = RuntimeConfig(
        pool_uid="bench",
        base_model=BaseModelConfig(name=BASE, source=_source(BASE)),
        engine=limits,
        sources=(SourceMount(name=SHELF, kind="claim"),),
    )
    (places["config"] / RUNTIME_CONFIG_FILE).write_bytes(config.canonical_json())
    digests = Cache(directory / "digests", None, tuple)
    sources = Sources(config.sources, {SHELF: shelf})
    entries = [
        AdapterEntry(
            name=adapter,
            source=_source(adapter),
            digest=digests.copy(sources, _source(adapter).uri, "adapter").digest,
        )
        for adapter in adapters
    ]
    adapter_set = AdapterSet(pool_uid="bench", config_hash=config.config_hash(), generation=1, adapters=tuple(entries))
    (places["adapter-set"] / ADAPTER_SET_FILE).write_bytes(adapter_set.to_gzip())
    number = free_port()  # the ports of a pod are fixed: each gets an address of its own
    address = f"127.{64 + number % 128}.{number // 256}.{2 + number % 250}"
    arguments = [f"--{part}-directory={place}" for part, place in places.items()]
    arguments += ["--bind-address", address, "--pod-uid", name, "--source-mount", SHELF, str(shelf)]
    command = [sys.executable, "-m", "graft_runtime", "serve", *arguments]
    return Server(name, command, directory, ready="/readyz", ports=(8000, 8002), address=address)


def _source(name: str) -> Source:
    return Source(uri=f"pvc://{SHELF}/{name}")


def start_static(name: str, directory: Path, shelf: Path, adapters: Sequence[str], *, rows: int) -> Server:
    """Start static batches of Transformers, or of PEFT where there are adapters. Parameters as of `start_pod`."""
    port = free_port()
    command = [sys.executable, str(Path(__file__).with_name("engine_static_peer.py"))]
    command += ["--model", str(shelf / BASE), "--port", str(port), "--rows", str(rows)]
    for adapter in adapters:
        command += ["--adapter", adapter, str(shelf / adapter)]
    return Server(name, command, directory, ready="/", ports=(port, port), environment={"OMP_WAIT_POLICY": "PASSIVE"})


def start_vllm(name: str, directory: Path, shelf: Path, adapters: Sequence[str], *, rows: int, python: Path) -> Server:
    """Start vLLM with the interpreter of its environment. Parameters as of `start_pod`."""
    port = free_port()
    command = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", str(shelf / BASE)]
    command += ["--served-model-name", BASE, "--host", ADDRESS, "--port", str(port), "--dtype", "bfloat16"]
    command += ["--max-model-len", "2048", "--max-num-seqs", str(rows)]
    if adapters:
        modules = [f"{adapter}={shelf / adapter}" for adapter in adapters]
        command += ["--enable-lora", "--max-loras", str(len(adapters)), "--max-lora-rank", "16"]
        command += ["--lora-modules", *modules]
    environment = {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    more: dict[str, object] = {"ignore_eos": True}
    return Server(name, command, directory, ready="/health", ports=(port, port), environment=environment, more=more)
