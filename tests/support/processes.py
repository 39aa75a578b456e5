"""Processes of a local cluster, found by their command lines."""

from __future__ import annotations

import socket
from pathlib import Path

from graft_local.cluster import LocalCluster
from graft_process_node.lifeline import descendants


def process_of(cluster: LocalCluster, *words: str, below: int | None = None) -> int:
    """Return the one process of this cluster, or below the process `below`, whose command line holds all `words`."""
    root = cluster.process("supervisor") if below is None else below
    found = [pid for pid in descendants(root) if _runs(pid, words)]
    assert len(found) == 1, f"{len(found)} processes run {words}"
    return found[0]


def _runs(pid: int, words: tuple[str, ...]) -> bool:
    try:
        command = Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:  # it has ended meanwhile
        return False
    return all(any(word == argument.rpartition("/")[2] for argument in command) for word in words)


def free_port() -> int:
    """Return a port of 127.0.0.1 that nobody listens on now."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return int(listening.getsockname()[1])
