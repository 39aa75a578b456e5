"""A pod that leaves: who asks it meanwhile is answered, and sent away one answer at a time."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import pytest
from graft_runtime.contract.config import EngineConfig

from tests.support.waiting import wait_until


@pytest.fixture
def pod(make_pod: Callable[..., Any]) -> Any:
    pod = make_pod(adapter_startup_seconds=0, engine=EngineConfig(max_sequences=8, max_rank=16))
    pod.start()
    pod.wait_ready()
    return pod


@dataclass
class Client:
    """Asks one pod again and again, on a connection that it keeps as long as the pod lets it."""

    pod: Any
    pause_seconds: float
    body: dict[str, Any]
    leaving: threading.Event
    """Whether the pod has begun to leave."""
    routed: threading.Event
    """Set once whoever routes has heard of it: new connections go to other pods."""
    answers: list[tuple[bool, str | None]] = field(default_factory=list)
    """Of each: whether the pod was leaving when it was asked, and the header `Connection`."""
    failures: list[str] = field(default_factory=list)

    def run(self) -> None:
        while not self.routed.is_set() and not self.failures:
            connection = http.client.HTTPConnection(self.pod.address, 8000, timeout=60)
            with contextlib.closing(connection):
                while self._ask(connection):
                    self.routed.wait(self.pause_seconds)

    def _ask(self, connection: http.client.HTTPConnection) -> bool:
        """Ask once; return whether the connection is kept."""
        leaving = self.leaving.is_set()
        try:
            connection.request("POST", "/v1/completions", json.dumps(self.body), {"Content-Type": "application/json"})
            answer = connection.getresponse()
            content = answer.read()
        except (OSError, http.client.HTTPException) as error:
            self.failures.append(repr(error))
            return False
        ended = b"[DONE]" in content if self.body.get("stream") else True
        if answer.status != 200 or b'"error"' in content or not ended:
            self.failures.append(f"{answer.status} {content!r}")
        self.answers.append((leaving, answer.headers["connection"]))
        return not answer.will_close


def test_no_request_fails_while_a_pod_leaves(pod: Any) -> None:
    """Fast, slow and streaming clients on kept connections, and none of them has heard yet that the pod is going."""
    leaving, routed = threading.Event(), threading.Event()
    short = {"model": "tiny", "prompt": "hello", "temperature": 0, "max_tokens": 4}
    kinds = [(0.0, short), (0.05, short), (1.5, short), (0.0, short | {"stream": True, "max_tokens": 100})]
    clients = [Client(pod, pause, body, leaving, routed) for pause, body in kinds]
    with ThreadPoolExecutor(len(clients)) as threads, contextlib.ExitStack() as stack:
        running = [threads.submit(client.run) for client in clients]
        try:
            idle = stack.enter_context(_connected(pod))
            wait_until(lambda: all(client.answers for client in clients))
            assert {connection for client in clients for _, connection in client.answers} == {None}, "all are kept"
            pod.process.send_signal(signal.SIGTERM)
            wait_until(lambda: pod.probe("/readyz") == 503)
            leaving.set()
            assert idle.sock.recv(1) == b"", "closed, as nothing was asked on it for some time"
            before = [len(client.answers) for client in clients]
            wait_until(lambda: all(c.failures or len(c.answers) > n + 1 for c, n in zip(clients, before, strict=True)))
        finally:
            routed.set()
        for each in running:
            each.result()
    assert [client.failures for client in clients] == [[]] * len(clients)
    late = [connection for client in clients for leaving, connection in client.answers if leaving]
    assert len(late) > 20
    assert set(late) == {"close"}
    assert pod.process.wait(20) == 0, "nobody asks any more"


def test_running_answers_end_and_new_ones_are_taken_meanwhile(pod: Any) -> None:
    with pod.stream("tiny") as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        pod.process.send_signal(signal.SIGTERM)
        wait_until(lambda: pod.probe("/readyz") == 503)
        assert pod.probe("/livez") == 200
        with _connected(pod) as idle:
            assert idle.sock.recv(1) == b"", "closed, as nothing was asked on it, though an answer still runs"
        os.kill(pod.engine_pid, signal.SIGCONT)
        assert pod.text("tiny"), "whoever has not heard of it yet is served"
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert pod.process.wait(20) == 0


def test_a_pod_that_leaves_sends_its_clients_away_one_answer_at_a_time(pod: Any) -> None:
    used = http.client.HTTPConnection(pod.address, 8000, timeout=60)
    with contextlib.closing(used), pod.stream("tiny") as response:
        response.readline()
        os.kill(pod.engine_pid, signal.SIGSTOP)
        assert [_connection_of(used), _connection_of(used)] == [None, None]
        pod.process.send_signal(signal.SIGTERM)
        wait_until(lambda: pod.probe("/readyz") == 503)
        assert _connection_of(used) == "close", "answered, and no other request comes here"
        os.kill(pod.engine_pid, signal.SIGCONT)
        assert response.read().endswith(b"data: [DONE]\n\n")
    assert pod.process.wait(20) == 0


def test_whoever_has_connected_before_the_port_closes_is_answered(pod: Any) -> None:
    """One connection after the other is opened and asks nothing, until there is no more to connect to."""
    pod.process.send_signal(signal.SIGTERM)
    with contextlib.ExitStack() as stack:
        opened: list[http.client.HTTPConnection] = []

        def refused() -> bool:
            try:
                opened.append(stack.enter_context(_connected(pod)))
            except ConnectionRefusedError:
                return True
            return False

        wait_until(refused)
        opened[-1].request("POST", "/v1/completions", json.dumps({"model": "tiny", "prompt": "hello"}))
        assert opened[-1].getresponse().status == 200
    assert pod.process.wait(20) == 0


@contextlib.contextmanager
def _connected(pod: Any) -> Iterator[http.client.HTTPConnection]:
    """A connection on which nothing is asked."""
    connection = http.client.HTTPConnection(pod.address, 8000, timeout=30)
    with contextlib.closing(connection):
        connection.connect()
        yield connection


def _connection_of(client: http.client.HTTPConnection) -> str | None:
    """The header `Connection` of an answer on the client's kept connection."""
    client.request("GET", "/v1/models")
    answer = client.getresponse()
    answer.read()
    assert answer.status == 200
    return answer.headers["connection"]
