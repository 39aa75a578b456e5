"""Starts the parts of a cluster, restarts those that end, and leaves none behind.

Two processes: the *warden* adopts whatever loses its parent, and ends all of it when the *supervisor*, its only child
by birth, is gone. The supervisor owns the parts; it gets a SIGTERM from the kernel when the warden dies, so that either
may be killed. A part is killed by the kernel when the supervisor dies.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from graft_process_node.lifeline import (
    adopt_orphans,
    descendants,
    die_with_parent,
    end_descendants,
    signal_process,
    stop_when_closed,
)

from graft_local.control_plane import Part
from graft_local.errors import LocalClusterError

FIRST_BACK_OFF = 0.2
LONGEST_BACK_OFF = 10.0
_STEADY_SECONDS = 10.0  # who ran this long begins again with the first back-off
_POLL = 0.1
_PROBE_SECONDS = 0.5  # others may hold the lock for a moment, to see whether it is free
_LOG_LIMIT = 32 * 1024 * 1024
_WAKERS = {signal.SIGCHLD, signal.SIGTERM, signal.SIGINT}
_STOPPERS = {signal.SIGTERM, signal.SIGINT}


def back_off(failures: int) -> float:
    """Seconds to wait before the start that follows `failures` ends in a row (1 or more)."""
    return float(min(FIRST_BACK_OFF * 2 ** (failures - 1), LONGEST_BACK_OFF))


def pid_file(state: Path, name: str) -> Path:
    """Holds the process id of a part, or of the `supervisor`, while it runs."""
    return state / "run" / f"{name}.pid"


def log_file(state: Path, name: str) -> Path:
    """What a part, or the `supervisor`, writes to its output."""
    return state / "logs" / f"{name}.log"


class SupervisorLock:
    """Held by the one supervisor of a state directory, and by its warden; tells others whether there is one."""

    def __init__(self, state: Path) -> None:
        self._path = state / "run" / "supervisor.lock"
        self._file: IO[str] | None = None

    def acquire(self) -> bool:
        """Whether the lock is now ours. It stays so until this process and its forks have ended, or `release`."""
        self._path.parent.mkdir(parents=True, exist_ok=True)
        file = self._path.open("a")
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.close()
            return False
        self._file = file
        return True

    def release(self) -> None:
        """Let go of it; nothing happens where it is not held here."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def is_held(self) -> bool:
        """Whether some process holds it."""
        if not self._path.exists():
            return False
        probe = SupervisorLock(self._path.parent.parent)
        free = probe.acquire()
        probe.release()
        return not free


def run_under_warden(state: Path, supervised: Sequence[Part], lifeline: int | None = None) -> int:
    """Run the parts until SIGTERM or SIGINT, or until nobody holds the other end of the pipe `lifeline`.

    Called from the main thread of a process that has no other threads; it becomes the warden.

    Returns:
        The supervisor's exit status.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, _WAKERS)
    adopt_orphans()
    tie_to_warden = die_with_parent(signal.SIGTERM)
    pid = os.fork()
    if pid == 0:
        tie_to_warden()
        _run_in_fork(state, supervised)
    if lifeline is not None:
        stop_when_closed(lifeline)
    status = _await_supervisor(pid)
    end_descendants(os.getpid())
    _reap()
    for name in ("supervisor", *(part.name for part in supervised)):
        pid_file(state, name).unlink(missing_ok=True)
    return status


def _run_in_fork(state: Path, supervised: Sequence[Part]) -> None:
    status = 1
    try:
        signal.pthread_sigmask(signal.SIG_BLOCK, _WAKERS)
        Supervisor(state, supervised).run()
        status = 0
    except BaseException as error:  # a fork must end here, whatever happens
        sys.excepthook(type(error), error, error.__traceback__)
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def _await_supervisor(pid: int) -> int:
    while True:
        woken = signal.sigtimedwait(_WAKERS, 1.0)
        if woken is not None and woken.si_signo in _STOPPERS:
            signal_process(pid, signal.SIGTERM)
        status = _reap().get(pid)
        if status is not None:
            return status


def _reap() -> dict[int, int]:
    """The children that have ended: pid → exit status, negative for a signal."""
    ended = {}
    with suppress(ChildProcessError):  # no children at all
        while True:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if pid == 0:
                break
            ended[pid] = os.waitstatus_to_exitcode(status)
    return ended


@dataclass
class _Supervised:
    part: Part
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    failures: int = 0
    due: float = field(default=0.0)


class Supervisor:
    """Keeps parts running. One thread; it sleeps until a child ends, a signal comes or a start is due."""

    def __init__(self, state: Path, supervised: Sequence[Part]) -> None:
        self._state = state
        self._parts = [_Supervised(part) for part in supervised]
        for name in ("run", "logs"):
            (state / name).mkdir(parents=True, exist_ok=True)

    def run(self) -> None:
        """Until SIGTERM or SIGINT, which must be blocked, as must SIGCHLD; then all parts are stopped in order."""
        adopt_orphans()
        pid_file(self._state, "supervisor").write_text(f"{os.getpid()}\n")
        try:
            while True:
                self._start_due()
                woken = signal.sigtimedwait(_WAKERS, _POLL if self._any_waits() else 1.0)
                if woken is not None and woken.si_signo in _STOPPERS:
                    break
                self._note_ended()
        finally:
            self._stop_all()

    def _any_waits(self) -> bool:
        return any(supervised.process is None for supervised in self._parts)

    def _start_due(self) -> None:
        for supervised in self._parts:
            if supervised.process is None and time.monotonic() >= supervised.due and supervised.part.needs():
                self._start(supervised)

    def _start(self, supervised: _Supervised) -> None:
        part = supervised.part
        with _opened_log(log_file(self._state, part.name)) as log:
            supervised.process = subprocess.Popen(
                part.command,
                cwd=self._state,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                preexec_fn=die_with_parent(),  # noqa: PLW1509 - no other thread runs here
                start_new_session=True,
            )
        supervised.started = time.monotonic()
        pid_file(self._state, part.name).write_text(f"{supervised.process.pid}\n")
        _tell(f"{part.name} started, process {supervised.process.pid}")

    def _note_ended(self) -> None:
        ended = _reap()
        for supervised in self._parts:
            process = supervised.process
            if process is not None and process.pid in ended:
                process.returncode = ended[process.pid]
                self._note_end_of(supervised, process)
        if ended:
            self._end_orphans()

    def _note_end_of(self, supervised: _Supervised, process: subprocess.Popen[bytes]) -> None:
        now = time.monotonic()
        steady = now - supervised.started >= _STEADY_SECONDS
        supervised.failures = 1 if steady else supervised.failures + 1
        wait = back_off(supervised.failures)
        supervised.due = now + wait
        supervised.process = None
        pid_file(self._state, supervised.part.name).unlink(missing_ok=True)
        _tell(f"{supervised.part.name} ended with status {process.returncode}; next start in {wait:.1f} s")

    def _end_orphans(self) -> None:
        """What a part that died has left behind became our child; nothing else does."""
        running = frozenset(one.process.pid for one in self._parts if one.process is not None)
        if descendants(os.getpid()).keys() - running:
            end_descendants(os.getpid(), keep=running)

    def _stop_all(self) -> None:
        """In the reverse order of starting: nobody loses what it stands on before it has ended."""
        for supervised in reversed(self._parts):
            if supervised.process is not None:
                self._stop(supervised.process, supervised.part.stop_seconds)
                supervised.process = None
                _tell(f"{supervised.part.name} stopped")
        end_descendants(os.getpid())

    def _stop(self, process: subprocess.Popen[bytes], seconds: float) -> None:
        process.terminate()
        try:
            process.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            end_descendants(process.pid)
            process.kill()
            process.wait()


def _opened_log(path: Path) -> IO[bytes]:
    if path.exists() and path.stat().st_size > _LOG_LIMIT:
        path.replace(path.with_suffix(".log.1"))
    return path.open("ab")


def _tell(text: str) -> None:
    stamp = time.strftime("%H:%M:%S")
    print(f"{stamp} {text}", flush=True)


def claim_state(state: Path) -> SupervisorLock:
    """Become the only supervisor of the state directory.

    Raises:
        LocalClusterError: it has one already.
    """
    lock = SupervisorLock(state)
    deadline = time.monotonic() + _PROBE_SECONDS
    while not (ours := lock.acquire()) and time.monotonic() < deadline:
        time.sleep(0.01)
    if not ours:
        raise LocalClusterError(
            f"a local cluster runs in `{state}` already", hint="use it, or stop it: graft-local down --state DIRECTORY"
        )
    pid_file(state, "supervisor").write_text(f"{os.getpid()}\n")
    return lock
