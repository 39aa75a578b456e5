"""SIGTERM in the first seconds of a container. Process 1 gets no signal that it has no handler for."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

OPERATOR = ["graft_operator", "run", "--namespace=n", "--runtime-image=i", "--signing-key-secret=s"]


@pytest.mark.parametrize(("command", "slow"), [(OPERATOR, "kopf"), (["graft_runtime", "serve"], "fastapi")])
def test_sigterm_ends_a_program_that_still_imports(command: list[str], slow: str, tmp_path: Path) -> None:
    (tmp_path / f"{slow}.py").write_text("print('importing', flush=True); input()")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    with subprocess.Popen(
        [sys.executable, "-m", *command], env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "importing\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 128 + signal.SIGTERM, "the default action, which process 1 has not, gives -15"
