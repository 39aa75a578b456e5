"""Bytes with their length before them, over a socket."""

from __future__ import annotations

import select
import socket
import time

from graft_runtime.messages import FRAME_HEADER_BYTES, MAX_FRAME_BYTES, frame_header


def write_frame(target: socket.socket, content: bytes) -> None:
    """Write bytes. Raises OSError where nobody reads."""
    target.sendall(frame_header(content))
    target.sendall(content)


def read_frame(source: socket.socket, deadline: float | None = None) -> bytes:
    """Read what was written as one.

    Raises:
        EOFError: there is no more.
        OSError: it is too long; TimeoutError, at the deadline.
    """
    length = int.from_bytes(_read(source, FRAME_HEADER_BYTES, deadline), "big")
    if length > MAX_FRAME_BYTES:
        raise OSError(f"it has an answer of {length} bytes, over the limit of {MAX_FRAME_BYTES}")
    return _read(source, length, deadline)


def is_silent(descriptor: int, seconds: float) -> bool:
    """Return whether there is nothing to read for so long."""
    poll = select.poll()  # select takes no descriptor above 1,023, and clients take many
    poll.register(descriptor, select.POLLIN)
    return not poll.poll(1000 * max(0.0, seconds))


def _read(source: socket.socket, size: int, deadline: float | None) -> bytes:
    content = bytearray()
    while len(content) < size:
        if deadline is not None and is_silent(source.fileno(), deadline - time.monotonic()):
            raise TimeoutError("it gave no answer")
        piece = source.recv(min(size - len(content), 1 << 20))
        if not piece:
            raise EOFError("its process was ended")
        content += piece
    return bytes(content)
