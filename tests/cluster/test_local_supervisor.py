"""Restarting, and leaving no process behind, with parts that are a shell each."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from graft_local.supervisor import LONGEST_BACK_OFF, SupervisorLock, back_off, log_file, pid_file
from graft_process_node.lifeline import descendants

from tests.support.waiting import wait_until

PROGRAM = """
import sys
from pathlib import Path
from graft_local.control_plane import Part
from graft_local.supervisor import claim_state, run_under_warden
state = Path(sys.argv[1])
lock = claim_state(state)
shell = [Part(f"part-{number}", ["sh", "-c", script], stop_seconds=0.5) for number, script in enumerate(sys.argv[2:])]
sys.exit(run_under_warden(state, shell, lifeline=0))
"""
# A part whose child and grandchild, which left the session, must not outlive it.
FAMILY = "sleep 600 & setsid sh -c 'sleep 601; true' & wait"


@contextmanager
def supervised(state: Path, *scripts: str) -> Iterator[subprocess.Popen[bytes]]:
    """The warden; its standard input is its lifeline."""
    command = [sys.executable, "-c", PROGRAM, str(state), *scripts]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL) as warden:
        wait_until(lambda: all(pid_file(state, f"part-{number}").exists() for number in range(len(scripts))))
        try:
            yield warden
        finally:
            assert warden.stdin is not None
            warden.stdin.close()
            warden.wait(10)


def recorded(state: Path, name: str) -> int | None:
    try:
        return int(pid_file(state, name).read_text())
    except (FileNotFoundError, ValueError):  # ended, or not written in full yet
        return None


def are_gone(pids: set[int]) -> bool:
    return not any(map(is_alive, pids))


def is_alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:  # also when it ends while it is read
        return False


def test_back_off_doubles_up_to_a_limit() -> None:
    waits = [back_off(failures) for failures in range(1, 12)]
    assert waits[:4] == [0.2, 0.4, 0.8, 1.6]
    assert waits[-1] == LONGEST_BACK_OFF


def test_a_part_that_ends_is_started_again_and_leaves_nothing(tmp_path: Path) -> None:
    with supervised(tmp_path, FAMILY) as warden:
        first = recorded(tmp_path, "part-0")
        assert first is not None
        wait_until(lambda: len(descendants(first)) == 3)
        family = {first, *descendants(first)}
        os.kill(first, signal.SIGKILL)
        wait_until(lambda: recorded(tmp_path, "part-0") not in {None, first})
        assert are_gone(family)
        assert warden.poll() is None


def test_what_a_part_writes_is_in_its_log(tmp_path: Path) -> None:
    with supervised(tmp_path, "echo out; echo fault >&2; sleep 600"):
        wait_until(lambda: log_file(tmp_path, "part-0").read_text() == "out\nfault\n")


@pytest.mark.parametrize("victim", ["supervisor", "warden", "lifeline", "terminated"])
def test_nothing_outlives_the_supervisor(tmp_path: Path, victim: str) -> None:
    with supervised(tmp_path, FAMILY, "trap '' TERM; sleep 600") as warden:
        supervisor = recorded(tmp_path, "supervisor")
        assert supervisor is not None
        wait_until(lambda: len(descendants(supervisor)) == 6)
        everything = {supervisor, *descendants(supervisor)}
        if victim == "lifeline":
            assert warden.stdin is not None
            warden.stdin.close()
        elif victim == "terminated":
            warden.terminate()
        else:
            os.kill(supervisor if victim == "supervisor" else warden.pid, signal.SIGKILL)
        wait_until(lambda: are_gone(everything), seconds=20)
        warden.wait(10)
        assert not SupervisorLock(tmp_path).is_held()


def test_parts_stop_in_the_reverse_order(tmp_path: Path) -> None:
    order = tmp_path / "order"
    script = "trap 'echo {0} >>{1}; exit' TERM; echo up; while :; do sleep 0.01; done"
    with supervised(tmp_path, script.format("first", order), script.format("second", order)):
        wait_until(lambda: all(log_file(tmp_path, f"part-{n}").read_text() == "up\n" for n in range(2)))
    assert order.read_text().split() == ["second", "first"]


def test_a_state_directory_is_held_by_one(tmp_path: Path) -> None:
    lock, other = SupervisorLock(tmp_path), SupervisorLock(tmp_path)
    assert not other.is_held()
    assert lock.acquire()
    assert other.is_held()
    assert not other.acquire()
    lock.release()
    assert not other.is_held()
