"""Ending processes that are known only by a variable in their environment."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from graft_process_node.lifeline import signal_process


def sweep(variable: str, prefix: str, seconds: float = 5.0) -> int:
    """Kill every process of this user whose environment has `variable` set to something that begins with `prefix`.

    Returns:
        How many were killed.
    """
    wanted = f"{variable}={prefix}".encode()
    deadline = time.monotonic() + seconds
    killed: set[int] = set()
    while found := _matching(wanted):
        killed |= found
        for pid in found:
            signal_process(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(0.01)
    return len(killed)


def _matching(wanted: bytes) -> set[int]:
    found = set()
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit() or int(entry.name) == os.getpid():
            continue
        try:
            environment = (entry / "environ").read_bytes()
        except OSError:  # another user's, or gone
            continue
        if any(part.startswith(wanted) for part in environment.split(b"\0")):
            found.add(int(entry.name))
    return found
