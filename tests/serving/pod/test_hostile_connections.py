"""Clients that connect, send or read as slowly as they can, and as often: the others are answered all the while."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import resource
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.config import EngineConfig

from tests.support import cases
from tests.support.connections import connect
from tests.support.slow_clients import visit
from tests.support.waiting import wait_until

MIB = 1 << 20
NOTHING = 188
"""The token of the byte 0, which JSON says with six characters."""
HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
PLAIN = (str(Path(__file__).with_name("plain_engine.py")),)


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any]) -> Any:
    pod = make_pod(engine=EngineConfig(max_sequences=16, max_sequence_length=1 << 16))
    pod.mount_set(pod.set_of(1))
    pod.start("--impatient", program=PLAIN)
    pod.wait_ready()
    return pod


@contextlib.contextmanager
def connected(pod: Any, count: int = 1, port: int = 8000, buffer: int | None = None) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as opened:
        yield [opened.enter_context(connect(pod.address, port, 20, buffer)) for _ in range(count)]


def received(connection: socket.socket) -> bytes:
    """Return all that comes until the other end closes it."""
    content = b""
    try:
        while piece := connection.recv(MIB):
            content += piece
    except ConnectionResetError:
        pass
    return content


@pytest.mark.parametrize("port", [8000, 8001, 8002])
@pytest.mark.parametrize("sent", [b"", b"POST /v1/comp", b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b"])
def test_a_head_that_does_not_come_is_not_waited_for(pod: Any, port: int, sent: bytes) -> None:
    with connected(pod, port=port) as (connection,):
        connection.sendall(sent)
        assert received(connection) == b""


def test_a_body_that_does_not_come_is_not_waited_for(pod: Any) -> None:
    with connected(pod) as (connection,):
        connection.sendall(HEAD % 1000 + b'{"model"')
        answer = received(connection)
        assert answer.startswith(b"HTTP/1.1 400 ")
        assert b"not whole after 3" in answer


def test_a_client_that_does_not_read_holds_no_place_and_is_cut(pod: Any) -> None:
    """128 answers fill the queue of this pod; their client reads nothing."""
    asked = {"model": "tiny", "prompt": [[NOTHING] * 7000] * 128, "max_tokens": 7000, "stream": True}
    body = json.dumps(asked).encode()
    with connected(pod, buffer=2048) as (connection,):
        connection.sendall(HEAD % len(body) + body)
        wait_until(lambda: pod.complete("tiny", ["a"] * 100).status == 200, "there is room again")
        wait_until(lambda: '"generatedTokens": 896000' in pod.log, "nobody waits for it any more")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, MIB)
        assert b"[DONE]" not in received(connection)


@pytest.mark.parametrize("port", [8000, 8001, 8002])
@pytest.mark.parametrize("sent", [b"", HEAD % 1000 + b"{"], ids=["silent", "without a body"])
def test_more_connections_than_there_may_be_keep_nobody_out(pod: Any, port: int, sent: bytes) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 8192), hard))
    with connected(pod, 1200, port) as connections:
        for connection in connections:
            with contextlib.suppress(OSError):  # it has made way for another
                connection.sendall(sent)
        assert pod.probe("/livez") == pod.probe("/readyz") == 200
        assert pod.status() is not None
        assert pod.complete("tiny").status == 200


def test_a_client_that_asks_again_and_again_keeps_its_connection(pod: Any) -> None:
    kept = http.client.HTTPConnection(pod.address, 8000, timeout=20)
    with contextlib.closing(kept):
        for _ in range(3):
            kept.request("GET", "/v1/models")
            assert kept.getresponse().read()
            own = kept.sock.getsockname()
            with connected(pod, 600), connected(pod, 600):
                kept.request("GET", "/v1/models")
                assert kept.getresponse().read()
            assert kept.sock.getsockname() == own


def in_pieces(size: int, count: int) -> bytes:
    """Return a request whose body comes in so many pieces of so many bytes, most of them blanks."""
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    body = b'{"model":"tiny","prompt":"hello"}'.ljust(size * count)
    pieces = (body[start : start + size] for start in range(0, len(body), size))
    return head + b"".join(b"%x\r\n%s\r\n" % (size, piece) for piece in pieces) + b"0\r\n\r\n"


@pytest.mark.parametrize(
    ("size", "count", "status"), [(1, 900, 200), (100, 5000, 200), (1, 5000, 400), (16, 5000, 400)]
)
def test_a_body_in_many_small_pieces_is_refused(pod: Any, size: int, count: int, status: int) -> None:
    with connected(pod) as (connection,):
        connection.sendall(in_pieces(size, count))
        assert received(connection).startswith(b"HTTP/1.1 %d " % status)


@pytest.mark.parametrize(("fields", "status"), [(200, 200), (300, 400), (5000, 400)])
def test_a_head_of_many_fields_is_refused(pod: Any, fields: int, status: int) -> None:
    with connected(pod) as (connection,):
        head = b"GET /v1/models HTTP/1.1\r\nHost: x\r\nConnection: close\r\n"
        connection.sendall(head + b"a:b\r\n" * fields + b"\r\n")
        assert received(connection).startswith(b"HTTP/1.1 %d " % status)


def test_a_storm_of_bad_requests_is_a_line_now_and_then(pod: Any) -> None:
    before = pod.log.count("Invalid HTTP request")
    for _ in range(300):
        with connected(pod) as (connection,):
            connection.sendall(b"\0\0\r\n\r\n")
            assert received(connection).startswith(b"HTTP/1.1 400 ")
    assert pod.log.count("Invalid HTTP request") - before <= 2 * 60


async def test_random_clients_get_their_own_answers_or_none_and_all_are_let_go(pod: Any) -> None:
    """This engine answers with the prompt from its end to its start, so that each answer tells whose it is."""
    count = cases.PLANNED["slow clients"]
    heard = await asyncio.gather(*(visit(pod.address, 8000, seed) for seed in range(count)))
    for one in heard:
        statuses = {answer[9:12] for answer in one.answers}
        assert statuses <= ({b"200"} if one.honest else {b"100", b"200", b"400", b"404", b"405", b"413", b"431"}), one
        assert one.answers or not one.honest, one
        assert all(said(answer) == one.text[::-1] for answer in one.answers if answer[9:12] == b"200"), one
    assert pod.probe("/livez") == 200
    cases.tried("slow clients", count)
    assert sum(one.honest for one in heard) > count / 4


def said(answer: bytes) -> str:
    """The text of an answer of 200."""
    return str(json.loads(answer.partition(b"\r\n\r\n")[2])["choices"][0]["text"])
