"""vLLM as the engine of a pod, as a process of its own."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

ROOT = Path(__file__).parents[2]
START_SECONDS = 1200.0
"""vLLM imports itself in three processes, one after the other."""


class VllmEngine:
    """`python -m graft_vllm` in vLLM's environment.

    Args:
        python: of that environment.
        directory: for its socket and its log.
    """

    def __init__(self, python: Path, directory: Path) -> None:
        self.socket, self._log = directory / "e.sock", directory / "vllm.log"
        environment = os.environ | {
            "PYTHONPATH": f"{ROOT / 'vllm_shim'}:{ROOT / 'runtime'}",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "OMP_NUM_THREADS": "1",
        }
        with self._log.open("wb") as log:
            self.process = subprocess.Popen(
                [python, "-m", "graft_vllm", "--socket", self.socket],
                env=environment,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    @property
    def log(self) -> str:
        return self._log.read_text()

    def processes(self) -> list[int]:
        """Return those of its processes that still run."""
        return [int(stat.parent.name) for stat in Path("/proc").glob("[0-9]*/stat") if self._runs(stat)]

    def _runs(self, stat: Path) -> bool:
        try:
            state, _, _, session = stat.read_text().rpartition(")")[2].split()[:4]
        except (OSError, ValueError):
            return False
        return state != "Z" and int(session) == self.process.pid

    def kill(self) -> None:
        """All of its processes at once."""
        for pid in self.processes():
            os.kill(pid, signal.SIGKILL)
        self.process.wait()
