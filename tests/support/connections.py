"""Connections of clients who mean no good: bare sockets, that may read as little as they like."""

from __future__ import annotations

import socket


def connect(address: str, port: int, seconds: float, buffer: int | None = None) -> socket.socket:
    """Return a connection. Raises OSError.

    Args:
        address: of the server.
        port: of the server.
        seconds: that connecting, and each call later, may take.
        buffer: bytes of what has come and was not read yet; None: as many as usual.
    """
    connection = socket.socket()
    try:
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.settimeout(seconds)
        connection.connect((address, port))
    except OSError:
        connection.close()
        raise
    return connection
