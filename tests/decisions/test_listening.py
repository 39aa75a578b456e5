"""The sockets that a pod's servers listen on."""

from __future__ import annotations

import socket

from graft_runtime.http.server import listen


def test_small_answers_are_sent_at_once() -> None:
    with listen("127.0.0.1", 0) as listening, socket.create_connection(listening.getsockname()):
        accepted, _ = listening.accept()
        with accepted:
            assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
