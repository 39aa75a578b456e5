"""One container's process and its shim, without a cluster."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from graft_process_node.container_process import MARKER, ContainerProcess, StartError, run_to_end, start
from graft_process_node.sweep import sweep

from tests.support.waiting import wait_until

ENVIRONMENT = {"PATH": os.environ["PATH"]}
DEEP = "sleep 432 & setsid sh -c 'setsid sleep 432 & sleep 432' & "


def marked(marker: str) -> int:
    """How many living processes carry this marker."""
    wanted = f"{MARKER}={marker}".encode()
    count = 0
    for entry in Path("/proc").iterdir():
        try:
            count += entry.name.isdigit() and wanted in (entry / "environ").read_bytes().split(b"\0")
        except OSError:
            continue
    return count


async def shell(script: str, marker: Path, log: Path | None = None) -> ContainerProcess:
    return await start(("sh", "-c", script), ENVIRONMENT, "/", marker=str(marker), log=log)


async def test_output_and_exit_code_are_kept(tmp_path: Path) -> None:
    process = await shell("echo out; echo err >&2; exit 3", tmp_path, log=tmp_path / "log")

    ending = await process.wait()

    assert (ending.exit_code, ending.signal_number) == (3, 0)
    lines = [line.split(" ", 1)[1] for line in (tmp_path / "log").read_text().splitlines()]
    assert sorted(lines) == ["stderr F err", "stdout F out"]
    assert sorted(ending.output.split()) == ["err", "out"]


async def test_a_signal_shows_as_a_shell_counts_it(tmp_path: Path) -> None:
    process = await shell("kill -SEGV $$", tmp_path)

    ending = await process.wait()

    assert (ending.exit_code, ending.signal_number) == (139, signal.SIGSEGV)


async def test_what_the_first_process_leaves_behind_ends_with_it(tmp_path: Path) -> None:
    process = await shell(DEEP + "exit 0", tmp_path)

    assert (await process.wait()).exit_code == 0
    assert marked(str(tmp_path)) == 0


async def test_only_the_first_process_gets_the_signal_and_everything_the_kill(tmp_path: Path) -> None:
    script = f"trap 'touch {tmp_path}/told' TERM; {DEEP} touch {tmp_path}/set; while true; do sleep 0.05; done"
    process = await shell(script, tmp_path)
    wait_until(lambda: os.path.exists(f"{tmp_path}/set") and marked(str(tmp_path)) >= 5, "it runs")

    process.send(signal.SIGTERM)
    wait_until(lambda: os.path.exists(f"{tmp_path}/told"), "it was told")
    assert marked(str(tmp_path)) >= 5, "the others were not"
    ending = await process.end()

    assert (ending.exit_code, ending.signal_number) == (137, signal.SIGKILL)
    assert marked(str(tmp_path)) == 0


@pytest.mark.parametrize(
    ("program", "directory", "message"),
    [
        ("no-such-program", "/", "no-such-program: No such file or directory"),
        ("/etc", "/", "/etc: Permission denied"),
        ("true", "/no/such/directory", "/no/such/directory: No such file or directory"),
    ],
)
async def test_what_cannot_start_says_why(program: str, directory: str, message: str) -> None:
    with pytest.raises(StartError, match=f"^{message}$"):
        await start((program,), ENVIRONMENT, directory, marker="none", log=None)


async def test_nothing_but_the_given_environment_is_passed_on(tmp_path: Path) -> None:
    given = {"PATH": os.environ["PATH"], "A": "1"}
    process = await start(("env",), given, "/", marker=str(tmp_path), log=None)

    lines = (await process.wait()).output.split()

    assert set(lines) == {f"PATH={os.environ['PATH']}", "A=1", f"{MARKER}={tmp_path}"}


async def test_a_command_that_takes_too_long_is_killed(tmp_path: Path) -> None:
    with pytest.raises(TimeoutError):
        await run_to_end(("sleep", "432"), ENVIRONMENT, "/", marker=str(tmp_path), seconds=0.2)

    assert marked(str(tmp_path)) == 0


async def test_processes_can_be_found_by_their_marker_alone(tmp_path: Path) -> None:
    process = await shell("sleep 432", tmp_path)
    wait_until(lambda: marked(str(tmp_path)) >= 1, "it runs")

    assert sweep(MARKER, str(tmp_path)) >= 1

    assert (await process.wait()).signal_number == signal.SIGKILL


AGENT = """
import asyncio, os, sys
from graft_process_node.container_process import start
async def main():
    await start(("sh", "-c", sys.argv[1]), {"PATH": os.environ["PATH"]}, "/", marker=sys.argv[2], log=None)
    print("started", flush=True)
    await asyncio.sleep(60)
asyncio.run(main())
"""


def test_no_process_outlives_a_killed_agent(tmp_path: Path) -> None:
    command = [sys.executable, "-c", AGENT, DEEP + "sleep 432", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as agent:
        assert agent.stdout is not None
        assert agent.stdout.readline() == b"started\n"
        wait_until(lambda: marked(str(tmp_path)) >= 5, "it runs")

        agent.kill()

        wait_until(lambda: marked(str(tmp_path)) == 0, "everything is gone", seconds=5)
