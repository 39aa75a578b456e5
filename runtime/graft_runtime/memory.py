"""How much memory a pod's processes may take: of the machine, and of what their container is limited to."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from graft_runtime.contract.environment import MEMORY_LIMIT

_CGROUP_FILES = (
    ("memory.max", "memory.current", "memory.stat", "inactive_file"),
    ("memory/memory.limit_in_bytes", "memory/memory.usage_in_bytes", "memory/memory.stat", "total_inactive_file"),
)
"""Limit, usage, statistics, and in these the entry of file pages that nobody used lately; version 2, version 1."""

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8
"""Of mallopt(3)."""
LARGE_BYTES = 256 << 10
PROC, CGROUP = Path("/proc"), Path("/sys/fs/cgroup")


def give_back_what_is_freed() -> None:
    """Have this process give large pieces back when they are freed; the C library keeps those of tens of mebibytes.

    For a process that reads what clients send. One that makes large tensors would ask the kernel for each of them.
    """
    with contextlib.suppress(OSError, AttributeError):  # another C library has its own ways
        library = ctypes.CDLL(None)
        for parameter, value in (
            (_M_MMAP_THRESHOLD, LARGE_BYTES),
            (_M_TRIM_THRESHOLD, LARGE_BYTES),
            (_M_ARENA_MAX, 2),
        ):
            library.mallopt(parameter, value)


def give_back_what_is_free() -> None:
    """Give back what is free between pieces that are in use. It takes tens of milliseconds."""
    with contextlib.suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


def collect_what_comes_alone() -> None:
    """Have the garbage collector look no more at what is there now: modules, models of bodies, applications.

    It looks at all once a quarter as much has been added. Until then bodies of requests that objects hold which hold
    each other would stay.
    """
    gc.collect()
    gc.freeze()
    gc.collect()  # the quarter counts from here


def free_memory(proc: Path = PROC, cgroup: Path = CGROUP, limit: str | None = None) -> int:
    """Return the bytes that this process may still take.

    Args:
        proc: where the kernel tells of the machine and of processes.
        cgroup: where the container's cgroup is mounted, of version 1 or 2.
        limit: bytes that the container may take, where no cgroup says so; None: as the environment says.
    """
    free = [_numbers(proc / "meminfo", ":")["MemAvailable"] << 10, *(most - used for most, used in _in_cgroup(cgroup))]
    limit = os.environ.get(MEMORY_LIMIT) if limit is None else limit
    if limit:
        free.append(int(limit) - sum(_taken(proc / name / "status") for name in _processes()))
    return max(0, min(free))


def _in_cgroup(cgroup: Path) -> Iterable[tuple[int, int]]:
    """Yield the container's limit and what it has taken, where there is a limit."""
    for limit, usage, statistics, inactive in _CGROUP_FILES:
        try:
            used = int((cgroup / usage).read_text()) - _numbers(cgroup / statistics, " ")[inactive]
            yield int((cgroup / limit).read_text()), used
        except (OSError, ValueError, KeyError):  # not this version, or `max`
            continue


def _processes() -> Sequence[str]:
    """Return the names below /proc of the two processes of a pod, as the engine process, a child, sees them."""
    return "self", str(os.getppid())


def _taken(status: Path) -> int:
    """Return the bytes that a process holds, but for pages of files: these can be dropped."""
    try:
        numbers = _numbers(status, ":", ("RssAnon", "RssShmem"))
    except OSError:
        return 0
    return sum(numbers.values()) << 10


def _numbers(file: Path, separator: str, names: Sequence[str] = ()) -> dict[str, int]:
    pairs = (line.split(separator, 1) for line in file.read_text().splitlines())
    return {name: int(value.split()[0]) for name, value in pairs if not names or name in names}
