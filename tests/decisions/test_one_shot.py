"""A child process for one job: whatever becomes of it is a typed fault, and nothing of it stays."""

from __future__ import annotations

import asyncio
import json
import os
import time
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.one_shot import run_once


async def answer(script: str, *, seconds: float = 30, memory_bytes: int = 1 << 32) -> Any:
    return await run_once(["-c", script], json.loads, what="the job", seconds=seconds, memory_bytes=memory_bytes)


async def fault(script: str, **bounds: Any) -> GraftError:
    with pytest.raises(GraftError) as caught:
        await answer(script, **bounds)
    assert caught.value.hint
    return caught.value


def written(path: Path) -> None:
    """Wait until the file is there."""
    deadline = time.monotonic() + 60
    while not (path.exists() and path.read_text()):
        assert time.monotonic() < deadline
        time.sleep(0.01)


async def test_it_answers_on_its_standard_output() -> None:
    assert await answer("print('[1, 2]')") == [1, 2]


async def test_one_that_is_killed() -> None:
    error = await fault("import os; os.kill(os.getpid(), 9)")
    assert (error.code, error.what) == (ErrorCode.NO_CAPACITY, "the process of the job was ended by SIGKILL")
    error = await fault("import os; os.kill(os.getpid(), 6)")
    assert (error.code, error.what) == (ErrorCode.INTERNAL, "the process of the job was ended by SIGABRT")


async def test_one_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    script = f"import os, time; open({str(tmp_path / 'pid')!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    began = time.monotonic()
    error = await fault(script, seconds=2)
    assert (error.code, error.what) == (ErrorCode.NO_CAPACITY, "the job took over 2 s")
    assert time.monotonic() - began < 60
    with pytest.raises(ProcessLookupError):
        os.kill(int((tmp_path / "pid").read_text()), 0)


async def test_one_that_nobody_waits_for_any_more_is_ended(tmp_path: Path) -> None:
    pid = tmp_path / "pid"
    script = f"import os, time; open({str(pid)!r}, 'w').write(str(os.getpid())); time.sleep(600)"
    task = asyncio.create_task(answer(script))
    await asyncio.to_thread(written, pid)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pid.read_text()), 0)


GARBAGE = ("print('no json')", "pass", "raise SystemExit(3)", "import sys; sys.stdout.buffer.write(b'\\xff')")


@pytest.mark.parametrize("script", GARBAGE)
async def test_one_that_answers_with_garbage(script: str) -> None:
    error = await fault(script)
    assert error.code is ErrorCode.INTERNAL
    assert error.what.startswith("the process of the job ended with status ")
    assert error.what.endswith(" and no answer")


async def test_one_that_takes_too_much_memory_fails_alone() -> None:
    script = "import time; time.sleep(0.5)\nx = bytearray(1 << 30)\nprint('[]')"
    assert (await fault(script, memory_bytes=1 << 28)).code is ErrorCode.INTERNAL
    assert await answer(script) == []
