"""A process for what strangers' files do: it answers one question at a time, and may be ended at any of them."""

from __future__ import annotations

import contextlib
import os
import resource
import select
import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO

from graft_runtime.messages import FRAME_HEADER_BYTES, frame
from graft_runtime.one_shot import bound_memory

SILENT_SECONDS = 60.0
"""Until a process is given up for lost."""
START_SECONDS = 300.0
"""The same for its first answer, with a processor that others use."""
MEMORY_BYTES = 1 << 30
LOST = (EOFError, OSError, TimeoutError)
"""What a question raises whose process is gone or silent."""


class Worker:
    """A process that runs a module, which calls `serve`. For one thread at a time.

    Args:
        module: its name.
        memory_bytes: that the process may have of its own.
    """

    def __init__(self, module: str, memory_bytes: int = MEMORY_BYTES) -> None:
        self._module, self._memory_bytes = module, memory_bytes
        self._process: subprocess.Popen[bytes] | None = None
        self._answered = False
        """Whether the process has answered anything: it imports for seconds first."""

    @property
    def process_id(self) -> int | None:
        """Return the id of the process; None while there is none."""
        return None if self._process is None else self._process.pid

    def start(self) -> subprocess.Popen[bytes]:
        """Start the process, if there is none, so that the first question does not wait for what it imports."""
        if self._process is None:
            pipe = subprocess.PIPE
            self._process = subprocess.Popen([sys.executable, "-m", self._module], stdin=pipe, stdout=pipe, bufsize=0)
            self._answered = False
            bound_memory(self._process.pid, self._memory_bytes)
        return self._process

    def close(self) -> None:
        """End the process; the next question starts another."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate()
            self._process = None

    def ask(self, question: bytes) -> bytes:
        """Return the process's answer. Raises one of LOST, the process ended."""
        process = self.start()
        deadline = time.monotonic() + (SILENT_SECONDS if self._answered else START_SECONDS)
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            _write(process.stdin, question)
            source = process.stdout.fileno()
            length = int.from_bytes(_read(source, FRAME_HEADER_BYTES, deadline), "big")
            answer = _read(source, length, deadline)
        except LOST:
            self.close()
            raise
        self._answered = True
        return answer


def serve(answered: Callable[[bytes], bytes]) -> None:
    """Answer questions until there are no more: this is the process."""
    source, answers = sys.stdin.fileno(), os.dup(sys.stdout.fileno())
    with contextlib.redirect_stdout(sys.stderr), os.fdopen(answers, "wb", 0) as target, contextlib.suppress(EOFError):
        while True:
            length = int.from_bytes(_read(source, FRAME_HEADER_BYTES), "big")
            _write(target, answered(_read(source, length)))


def limit_processor(seconds: int) -> None:
    """Have the kernel end this process once it has used so many more seconds of a processor."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    until = int(used.ru_utime + used.ru_stime) + 1 + seconds
    resource.setrlimit(resource.RLIMIT_CPU, (until, resource.getrlimit(resource.RLIMIT_CPU)[1]))


def _write(target: IO[bytes], content: bytes) -> None:
    rest = memoryview(frame(content))
    while rest:
        rest = rest[os.write(target.fileno(), rest) :]


def _read(source: int, size: int, deadline: float | None = None) -> bytes:
    """Read so many bytes. Raises EOFError when there are no more, TimeoutError at the deadline."""
    content = bytearray()
    while len(content) < size:
        if deadline is not None and not select.select([source], [], [], max(0.0, deadline - time.monotonic()))[0]:
            raise TimeoutError("it gave no answer")
        piece = os.read(source, min(size - len(content), 1 << 20))
        if not piece:
            raise EOFError("its process was ended")
        content += piece
    return bytes(content)
