"""Processes that must not outlive the one that started them, whatever happens to it.

Three means, each for the case that the others miss:
- a direct child gets a signal from the kernel when its parent dies (`die_with_parent`);
- deeper descendants move up to the nearest ancestor that adopts orphans (`adopt_orphans`), which ends them
  (`end_descendants`);
- a process that must outlast a fork in between holds the reading end of a pipe: when the last holder of the writing end
  is gone, the pipe closes (`stop_when_closed`).
"""

from __future__ import annotations

import ctypes
import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

_PR_SET_PDEATHSIG = 1
_PR_SET_CHILD_SUBREAPER = 36
_LIBC = ctypes.CDLL(None, use_errno=True)


def die_with_parent(with_signal: signal.Signals = signal.SIGKILL) -> Callable[[], None]:
    """A `preexec_fn` for `subprocess`: the child gets `with_signal` when the thread that starts it ends.

    So start the child from a thread that lives as long as the process, as the main thread does. The child's signal mask
    is cleared as well: a parent that waits for its signals has them blocked, and a child would inherit that.
    """
    parent = os.getpid()

    def in_child() -> None:
        _LIBC.prctl(_PR_SET_PDEATHSIG, int(with_signal), 0, 0, 0)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())
        if os.getppid() != parent:  # it died before the call above
            os._exit(1)

    return in_child


def adopt_orphans() -> None:
    """From now on, a descendant whose parent dies becomes a child of this process, not of the system's first one.

    Raises:
        OSError: the kernel refuses.
    """
    if _LIBC.prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "can't become the parent of orphans")


def descendants(root: int) -> dict[int, int]:
    """All living descendants of process `root`, itself not included: pid → parent's pid. Zombies are not counted."""
    parents = _living_processes()
    found: dict[int, int] = {}
    generation = {root}
    while generation:
        generation = {pid for pid, parent in parents.items() if parent in generation and pid not in found}
        found.update((pid, parents[pid]) for pid in generation)
    return found


def end_descendants(root: int, keep: frozenset[int] = frozenset(), seconds: float = 5.0) -> bool:
    """Kill every descendant of `root`, but for the processes `keep` and what descends from these.

    Returns:
        Whether none was left within `seconds`. Children of the calling process are reaped by their owner, not here.
    """
    deadline = time.monotonic() + seconds
    while True:
        living = descendants(root)
        kept = set(keep & living.keys())
        for pid in keep & living.keys():
            kept |= descendants(pid).keys()
        victims = living.keys() - kept
        if not victims:
            return True
        for pid in victims:
            signal_process(pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            return False
        time.sleep(0.01)


def signal_process(pid: int, which: signal.Signals) -> None:
    """Send a signal to a process that may have ended already."""
    try:
        os.kill(pid, which)
    except ProcessLookupError:
        return


def stop_when_closed(descriptor: int) -> None:
    """Send SIGTERM to this process as soon as the pipe that `descriptor` reads from has no writer left."""

    def wait() -> None:
        while os.read(descriptor, 64):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, name="lifeline", daemon=True).start()


def _living_processes() -> dict[int, int]:
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            stat = (entry / "stat").read_text(errors="replace")
        except OSError:  # it ended meanwhile
            continue
        state, parent = stat.rpartition(")")[2].split()[:2]
        if state not in "ZX":
            found[int(entry.name)] = int(parent)
    return found
