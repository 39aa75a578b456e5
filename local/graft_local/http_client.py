"""HTTP as the local cluster asks its own servers: one request on one connection, whatever the environment's proxies."""

from __future__ import annotations

import contextlib
import http.client
import ssl
import urllib.parse

FAULTS = (OSError, http.client.HTTPException)
"""What a request raises where there is no answer."""


def request(
    url: str, *, body: str | None = None, timeout: float = 5.0, context: ssl.SSLContext | None = None
) -> tuple[int, bytes]:
    """GET a URL, or POST `body` to it as JSON; the status and the content of the answer.

    Args:
        timeout: in seconds.
        context: for https: whom to trust, and what to show.

    Raises:
        OSError, http.client.HTTPException: there is no answer.
    """
    parts = urllib.parse.urlsplit(url)
    if context is None:
        connection = http.client.HTTPConnection(parts.netloc, timeout=timeout)
    else:
        connection = http.client.HTTPSConnection(parts.netloc, timeout=timeout, context=context)
    with contextlib.closing(connection):
        headers = {} if body is None else {"content-type": "application/json"}
        connection.request("GET" if body is None else "POST", parts.path, body, headers)
        answer = connection.getresponse()
        return answer.status, answer.read()
