"""What a pod takes while it is attacked: the time of its probes and of its control port, and memory."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable
from pathlib import Path

from tests.soak.stage import GOOD
from tests.support.pod_process import PodProcess

SAMPLED_SECONDS = 0.25
RETURN_SECONDS = 60.0
"""For memory to come back: processes of files that nobody asks any more are kept for half a minute."""


class Watch:
    """Asks /livez and the control port all the time, and looks at the memory of the pod's processes."""

    def __init__(self, pod: PodProcess) -> None:
        self._pod = pod
        self._stop = threading.Event()
        self.peak, self.probe, self.control = 0, 0.0, 0.0
        self._threads = [threading.Thread(target=self._run, args=(work,)) for work in (self._probed, self._controlled)]
        for thread in self._threads:
            thread.start()

    def begin(self) -> None:
        """Forget what was seen."""
        self.peak, self.probe, self.control = 0, 0.0, 0.0

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, work: Callable[[], None]) -> None:
        while not self._stop.wait(SAMPLED_SECONDS):
            work()

    def _probed(self) -> None:
        self.peak = max(self.peak, sum(memory(self._pod).values()))
        self.probe = max(self.probe, _seconds(lambda: self._pod.get("/livez", seconds=20).status))

    def _controlled(self) -> None:
        self.control = max(self.control, _seconds(lambda: self._pod.control("GET", "/status").status))


def _seconds(ask: Callable[[], int]) -> float:
    began = time.monotonic()
    try:
        status = ask()
    except OSError:
        return math.inf
    return time.monotonic() - began if status == 200 else math.inf


def processes(pod: PodProcess) -> list[int]:
    """Return the pod's processes."""
    assert pod.process is not None
    found, waiting = [], [pod.process.pid]
    while waiting:
        found.append(pid := waiting.pop())
        for file in Path(f"/proc/{pid}/task").glob("*/children"):
            try:
                waiting += map(int, file.read_text().split())
            except OSError:
                continue
    return found


def memory(pod: PodProcess) -> dict[str, int]:
    """Return the bytes that each of the pod's processes holds of its own, what several share counted once."""
    held: dict[str, int] = {}
    for pid in processes(pod):
        try:
            lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
            command = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        numbers = {name: int(value.split()[0]) for name, value in (line.split(":", 1) for line in lines)}
        name = command[2].decode() if command[1:2] == [b"-m"] else "other"
        held[f"{name} {pid}"] = (numbers["Pss_Anon"] + numbers["Pss_Shmem"]) << 10
    return held


def settled(pod: PodProcess, most: int, seconds: float) -> dict[str, int]:
    """Return what the pod's processes hold once it is no more than this, or after so many seconds."""
    ends = time.monotonic() + seconds
    while sum((held := memory(pod)).values()) > most and time.monotonic() < ends:
        pod.post("/v1/chat/completions", {"model": GOOD[-1], "messages": [{"role": "user", "content": "a"}]})
        time.sleep(1)
    return held
