"""The shim as a process: copied beside vLLM, listening for its pod, and not ended by what ends the pod."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from graft_runtime.pod.engine_socket import EngineSocket
from graft_vllm.__main__ import ADDRESS_BYTES, NAME_BYTES, place_of_sockets
from graft_vllm.copying import main

from tests.support.waiting import wait_until


def test_a_copy_runs_elsewhere_survives_sigterm_and_is_found_at_a_path_of_any_length(tmp_path: Path) -> None:
    shim, socket = tmp_path / "shim", tmp_path / ("d" * ADDRESS_BYTES) / "engine.sock"
    socket.parent.mkdir()
    for _ in range(2):  # an init container may run again
        main([str(shim)])
    told = subprocess.run(
        [sys.executable, "-c", "import graft_vllm, graft_runtime; print(graft_vllm.__file__, graft_runtime.__file__)"],
        env={"PYTHONPATH": str(shim)},
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert [Path(place).parent.parent for place in told.stdout.split()] == [shim, shim]
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "graft_vllm", "--socket", str(socket)]
        process = subprocess.Popen(command, env=os.environ | {"PYTHONPATH": str(shim)}, stderr=log)
    try:
        wait_until(socket.exists, (tmp_path / "log").read_text)
        process.send_signal(signal.SIGTERM)
        asyncio.run(_connect(socket))
        assert process.wait(30) != -signal.SIGTERM, "it ends with the connection"
    finally:
        process.kill()
        process.wait()


def test_sockets_of_vllm_s_processes_have_paths_that_fit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/tmp")
    assert place_of_sockets() == "/tmp"
    far = tmp_path / ("d" * ADDRESS_BYTES)
    far.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(far))
    (Path(place_of_sockets()) / "socket").touch()
    assert (far / "socket").exists()
    assert len(place_of_sockets()) + NAME_BYTES <= ADDRESS_BYTES


async def _connect(socket: Path) -> None:
    engine = EngineSocket(socket)
    running = asyncio.create_task(engine.run(lambda _: None))
    await asyncio.wait_for(engine.started(), 30)
    running.cancel()
    await asyncio.wait([running])
