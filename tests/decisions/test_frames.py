"""What goes between a pod and the processes of strangers' files."""

from __future__ import annotations

import socket
import threading
import time

import pytest
from graft_runtime.messages import FRAME_HEADER_BYTES, MAX_FRAME_BYTES
from graft_runtime.tokenizing.frames import read_frame, write_frame


@pytest.mark.parametrize("content", [b"", b"a", bytes(3 << 20)], ids=len)
def test_what_is_written_as_one_is_read_as_one(content: bytes) -> None:
    ours, its = socket.socketpair()

    def write() -> None:
        write_frame(its, content)
        write_frame(its, b"next")

    with ours, its:
        writing = threading.Thread(target=write)
        writing.start()
        assert read_frame(ours) == content
        assert read_frame(ours) == b"next"
        writing.join()


@pytest.mark.parametrize("length", [MAX_FRAME_BYTES + 1, (1 << 32) - 1])
def test_a_frame_over_the_limit_is_refused_before_its_content_is_awaited(length: int) -> None:
    ours, its = socket.socketpair()
    with ours, its:
        its.sendall(length.to_bytes(FRAME_HEADER_BYTES, "big"))
        with pytest.raises(OSError, match=f"an answer of {length} bytes, over the limit"):
            read_frame(ours, time.monotonic() + 1)
