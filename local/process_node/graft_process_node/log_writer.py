"""A container's log file, in the form that kubelets write: `TIME stdout F line`. Standard library only."""

from __future__ import annotations

import os
import time
from pathlib import Path

_LONGEST_LINE = 16384
_TAIL = 4096


class TailKeeper:
    """Keeps the last output and writes nothing."""

    def __init__(self) -> None:
        self._tail = b""

    def write(self, _stream: str, chunk: bytes) -> None:
        """Take in output."""
        self._tail = (self._tail + chunk)[-_TAIL:]

    def close(self) -> None:
        """Nothing to close."""

    def tail(self) -> str:
        """The last output, up to 4 KiB."""
        return self._tail.decode(errors="replace")


class LogWriter(TailKeeper):
    """Writes lines with their time; past `limit_bytes` the file becomes FILE.1 and a new one begins.

    Args:
        path: the log file.
        limit_bytes: the size of one file; there are two at most.
    """

    def __init__(self, path: str, limit_bytes: int) -> None:
        super().__init__()
        self._path = Path(path)
        self._limit = limit_bytes
        self._file = self._path.open("ab", buffering=0)
        self._size = self._file.tell()
        self._open_lines = {"stdout": b"", "stderr": b""}

    def write(self, stream: str, chunk: bytes) -> None:
        """Take in output; whole lines, and long parts of one, are written at once."""
        super().write(stream, chunk)
        *lines, last = (self._open_lines[stream] + chunk).split(b"\n")
        records = [_record(stream, b"F", line) for line in lines]
        while len(last) > _LONGEST_LINE:
            records.append(_record(stream, b"P", last[:_LONGEST_LINE]))
            last = last[_LONGEST_LINE:]
        self._open_lines[stream] = last
        self._append(b"".join(records))

    def close(self) -> None:
        """Write what was left without a line break."""
        for stream, line in self._open_lines.items():
            if line:
                self._append(_record(stream, b"P", line))
        self._file.close()

    def _append(self, records: bytes) -> None:
        if self._size and self._size + len(records) > self._limit:
            self._file.close()
            os.replace(self._path, f"{self._path}.1")
            self._file = self._path.open("ab", buffering=0)
            self._size = 0
        self._size += self._file.write(records) or 0


def _record(stream: str, tag: bytes, line: bytes) -> bytes:
    seconds, nanoseconds = divmod(time.time_ns(), 1_000_000_000)
    moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(seconds))
    return f"{moment}.{nanoseconds:09d}Z {stream} ".encode() + tag + b" " + line + b"\n"
