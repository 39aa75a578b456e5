"""The agent's side of one container's process: start it through its shim, signal it, learn how it ended."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import graft_process_node
from graft_process_node.sweep import sweep

_SOURCE_ROOT = str(Path(graft_process_node.__file__).parent.parent)
_BOOT = f"import sys; sys.path.insert(0, {_SOURCE_ROOT!r}); from graft_process_node.shim import main; main()"
MARKER = "GRAFT_LOCAL_CONTAINER"
_LOG_BYTES = 10 * 2**20
_START_SECONDS = 30.0


class StartError(Exception):
    """The program could not be started."""


@dataclass(frozen=True)
class Ending:
    """How a process ended.

    Args:
        exit_code: as a shell counts it: 128 + the signal for a process that a signal ended.
        signal_number: that signal, or 0.
        output: its last output, up to 4 KiB.
    """

    exit_code: int
    signal_number: int
    started_at: float
    finished_at: float
    output: str


@dataclass
class ContainerProcess:
    """A running container. Make one by `start`."""

    pid: int
    started_at: float
    marker: str
    _shim: asyncio.subprocess.Process
    _ending: asyncio.Task[Ending]

    async def wait(self) -> Ending:
        """How it ended, once it has. Safe to cancel and to call again."""
        return await asyncio.shield(self._ending)

    def send(self, number: int = signal.SIGTERM) -> None:
        """Send a signal to the container's first process, as a container runtime does."""
        self._order(b"T" + bytes([number]))

    def kill(self) -> None:
        """Kill it with all its descendants."""
        self._order(b"K")

    async def end(self) -> Ending:
        """Kill everything, and wait until it is gone."""
        self.kill()
        try:
            return await asyncio.wait_for(self.wait(), 10)
        except TimeoutError:  # the shim itself hangs
            with contextlib.suppress(ProcessLookupError):
                self._shim.kill()
            return await self.wait()

    def _order(self, order: bytes) -> None:
        writer = self._shim.stdin
        if writer is not None and not writer.is_closing():
            writer.write(order)


async def start(
    arguments: tuple[str, ...], environment: Mapping[str, str], directory: str, *, marker: str, log: Path | None
) -> ContainerProcess:
    """Start a process that does not outlive this one, nor do its descendants.

    Args:
        arguments: the program, searched in the environment's PATH, then its arguments.
        environment: all of it.
        directory: where it starts.
        marker: put into the environment as `GRAFT_LOCAL_CONTAINER`, so that strays can be found.
        log: where its output goes; None keeps only the end of it.

    Raises:
        StartError: there is no such program or directory, or it may not be run.
    """
    shim = await asyncio.create_subprocess_exec(
        sys.executable,
        "-I",
        "-S",
        "-c",
        _BOOT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        env={"PATH": os.environ.get("PATH", "")},
        start_new_session=True,
    )
    assert shim.stdin is not None
    order = {
        "arguments": list(arguments),
        "environment": {**environment, MARKER: marker},
        "directory": directory,
        "log": None if log is None else str(log),
        "log_bytes": _LOG_BYTES,
    }
    shim.stdin.write(json.dumps(order).encode() + b"\n")
    try:
        said = await asyncio.wait_for(_hear(shim), _START_SECONDS)
    except BaseException:
        shim.stdin.close()
        raise
    if "pid" not in said:
        shim.stdin.close()
        await shim.wait()
        raise StartError(said.get("error", "its shim ended before it started"))
    ending = asyncio.create_task(_ended(shim, float(said["at"]), marker), name=f"container {marker}")
    return ContainerProcess(int(said["pid"]), float(said["at"]), marker, shim, ending)


async def run_to_end(
    arguments: tuple[str, ...], environment: Mapping[str, str], directory: str, *, marker: str, seconds: float
) -> Ending:
    """Run a short command, as probes and hooks do; past `seconds` it is killed with all it started.

    Raises:
        StartError: it could not be started.
        TimeoutError: it took longer.
    """
    process = await start(arguments, environment, directory, marker=marker, log=None)
    try:
        return await asyncio.wait_for(process.wait(), seconds)
    except BaseException:
        await asyncio.shield(process.end())
        raise


async def _hear(shim: asyncio.subprocess.Process) -> dict[str, Any]:
    assert shim.stdout is not None
    line = await shim.stdout.readline()
    return dict(json.loads(line)) if line.endswith(b"\n") else {}


async def _ended(shim: asyncio.subprocess.Process, started_at: float, marker: str) -> Ending:
    said = await _hear(shim)
    assert shim.stdin is not None
    shim.stdin.close()
    await shim.wait()
    if "exit" not in said:  # the shim was killed: its container's first process died with it, deeper ones may not have
        await asyncio.to_thread(sweep, MARKER, marker)
        return Ending(137, signal.SIGKILL, started_at, time.time(), "")
    code = int(said["exit"])
    return Ending(
        exit_code=code if code >= 0 else 128 - code,
        signal_number=max(0, -code),
        started_at=started_at,
        finished_at=float(said["at"]),
        output=str(said["output"]),
    )
