"""A child process for one job, bounded in time and memory: what it does to itself, it does not do to the pod."""

from __future__ import annotations

import asyncio
import contextlib
import os
import resource
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypeVar

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.memory import free_memory

Answer = TypeVar("Answer")

MEMORY_BYTES = 8 << 30
"""Of its own data; what it maps of files is not counted."""
SHARE_OF_FREE = 0.5
"""A process gets no more than this of what is free when it starts: a container that runs out is ended whole."""
LEAST_BYTES = 256 << 20
"""What each gets at least."""
_HINT = "the pod's log may say more; give the pod more memory, or look at the files"


async def run_once(
    arguments: Sequence[str],
    read: Callable[[bytes], Answer],
    *,
    what: str,
    seconds: float,
    memory_bytes: int = MEMORY_BYTES,
) -> Answer:
    """Run Python with these arguments, and return what it writes to its standard output.

    Args:
        arguments: of Python.
        read: makes the answer of the output; raises ValueError where that is none.
        what: the job, for errors.
        seconds: after which the process is killed.
        memory_bytes: that it may have of its own.

    Raises:
        GraftError: NoCapacity when it took too long or was killed, Internal when it ended without an answer.
    """
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *arguments,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},  # the engine beside it has requests
    )
    try:
        bound_memory(process.pid, memory_bytes)
        async with asyncio.timeout(seconds):
            output, _ = await process.communicate()
    except TimeoutError:
        raise GraftError(ErrorCode.NO_CAPACITY, f"{what} took over {seconds:g} s", hint=_HINT) from None
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode is not None, "it has ended"
    if process.returncode < 0:
        number = signal.Signals(-process.returncode)
        code = ErrorCode.NO_CAPACITY if number is signal.SIGKILL else ErrorCode.INTERNAL
        raise GraftError(code, f"the process of {what} was ended by {number.name}", hint=_HINT)
    try:
        return read(output)
    except ValueError:
        said = f"the process of {what} ended with status {process.returncode} and no answer"
        raise GraftError(ErrorCode.INTERNAL, said, hint=_HINT) from None


def bound_memory(pid: int, memory_bytes: int, share: float = SHARE_OF_FREE) -> None:
    """Limit the memory of a process, and have the kernel kill it before all others where the container has none.

    Args:
        pid: of the process.
        memory_bytes: that it may have of its own.
        share: of what is free now, that it may have at most.
    """
    memory_bytes = min(memory_bytes, max(LEAST_BYTES, int(free_memory() * share)))
    with contextlib.suppress(OSError):
        _, highest = resource.prlimit(pid, resource.RLIMIT_DATA)
        limit = memory_bytes if highest == resource.RLIM_INFINITY else min(memory_bytes, highest)
        resource.prlimit(pid, resource.RLIMIT_DATA, (limit, limit))
    with contextlib.suppress(OSError):
        Path(f"/proc/{pid}/oom_score_adj").write_text("1000")
