"""Long steps, told to a person while they run: on a terminal in one line that changes, in a log every few seconds."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TextIO

_LOG_INTERVAL = 10.0
_TERMINAL_INTERVAL = 0.1


class Step:
    """One step that is under way. `update` may be called as often as one likes."""

    def __init__(self, title: str, stream: TextIO) -> None:
        self._title = title
        self._stream = stream
        self._terminal = stream.isatty()
        self._started = time.monotonic()
        self._shown = self._started
        if self._terminal:
            self._write(f"\r\x1b[K{title} …")

    def update(self, detail: str) -> None:
        """Show how far the step is."""
        now = time.monotonic()
        if now - self._shown < (_TERMINAL_INTERVAL if self._terminal else _LOG_INTERVAL):
            return
        self._shown = now
        line = f"{self._title}: {detail} ({now - self._started:.0f} s)"
        width = shutil.get_terminal_size().columns - 1
        self._write(f"\r\x1b[K{line[:width]}" if self._terminal else f"{line}\n")

    def close(self, outcome: str = "") -> None:
        """Say that the step has ended, and how long it took."""
        line = f"{self._title}: {outcome}{time.monotonic() - self._started:.1f} s\n"
        self._write(f"\r\x1b[K{line}" if self._terminal else line)

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


class Progress:
    """Tells of steps on `stream` (default: standard error)."""

    def __init__(self, stream: TextIO | None = None) -> None:
        self._stream = stream if stream is not None else sys.stderr

    @contextmanager
    def step(self, title: str) -> Iterator[Step]:
        """A step for the length of the block; an exception is told as a failure and goes on."""
        step = Step(title, self._stream)
        try:
            yield step
        except BaseException:
            step.close("failed after ")
            raise
        step.close()
