"""Bodies that a careless or hostile client sends: each is refused by itself, and the pod goes on for everyone else."""

from __future__ import annotations

import socket
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.waiting import wait_until

MIB = 1 << 20
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"model": "tiny", "prompt": "hello"},
    "/v1/chat/completions": {"model": "tiny", "messages": [{"role": "user", "content": "hello"}]},
}
INTEGERS = ("top_k", "max_tokens", "seed", "max_completion_tokens")
BODIES = {
    "a million empty prompts": b'{"model":"tiny","prompt":[' + b"[]," * (8 * MIB // 3 - 20) + b"[]]}",
    "a million objects as prompts": b'{"model":"tiny","prompt":[' + b"{}," * (MIB // 4) + b"{}]}",
    "a million prompts of one id": b'{"model":"tiny","prompt":[' + b"[1]," * (MIB // 4) + b"[1]]}",
    "a million texts": b'{"model":"tiny","prompt":[' + b'"a",' * (MIB - 20) + b'"a"]}',
    "a million numbers as messages": b'{"model":"tiny","messages":[' + b"1," * (MIB - 20) + b"1]}",
    "a million stop strings": b'{"model":"tiny","prompt":"a","stop":[' + b"1," * (MIB - 20) + b"1]}",
    "a million keys": b'{"model":"tiny","prompt":"a"' + b"".join(b',"%x":1' % key for key in range(MIB // 2)) + b"}",
    "quotes without end": b'{"model":"tiny","prompt":"' + b'\\"' * (4 * MIB - 20),
}


@pytest.fixture(scope="module")
def pod(make_pod: Callable[..., Any]) -> Any:
    pod = make_pod()
    pod.mount_set(pod.set_of(1))
    pod.start(program=(str(Path(__file__).with_name("plain_engine.py")),))
    pod.wait_ready()
    return pod


def test_memory_of_large_bodies_is_another_process_and_comes_back(pod: Any) -> None:
    """First of all: a process that has not been asked much yet."""

    def held(name: str = "RssAnon") -> int:
        lines = Path(f"/proc/{pod.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith(name))

    assert pod.text("tiny")
    before = held()
    Path(f"/proc/{pod.process.pid}/clear_refs").write_text("5")  # the peak begins anew
    least = held("VmHWM")
    for _ in range(2):
        assert pod.post("/v1/completions", BODIES["a million keys"]).status == 400
    content = BODIES["a million texts"]
    assert held("VmHWM") < least + 4 * len(BODIES["a million keys"])
    clients = [
        threading.Thread(target=lambda: [pod.post("/v1/completions", content) for _ in range(3)]) for _ in "abcd"
    ]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    wait_until(lambda: held() < before + 8 * MIB, lambda: f"{held() >> 20} MiB, {before >> 20} before", 20)


@pytest.mark.parametrize("value", [2**63, 2**64, -(2**63), 10**400], ids=["63 bits", "64 bits", "below", "400 digits"])
@pytest.mark.parametrize("field", INTEGERS)
def test_an_integer_that_fits_no_machine_word_is_refused_and_leaves_nothing_behind(
    pod: Any, field: str, value: int
) -> None:
    path = "/v1/chat/completions" if field == "max_completion_tokens" else "/v1/completions"
    reply = pod.post(path, ROUTES[path] | {field: value})
    assert (reply.status, reply.json["error"]["param"]) == (400, field), reply.content
    assert "a whole number from" in reply.json["error"]["message"]


@pytest.mark.parametrize("value", [2**63 - 1, 2**31, 1])
def test_the_largest_integers_are_taken(pod: Any, value: int) -> None:
    assert pod.text("tiny", top_k=value, seed=value, temperature=1)


@pytest.mark.parametrize("body", BODIES.values(), ids=BODIES)
def test_a_body_of_many_values_is_refused_while_probes_are_answered(pod: Any, body: bytes) -> None:
    path = "/v1/chat/completions" if b'"messages"' in body else "/v1/completions"
    replies: list[Any] = []
    clients = [threading.Thread(target=lambda: replies.append(pod.post(path, body))) for _ in range(2)]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        assert pod.get("/livez", seconds=5).status == 200
    assert [reply.status for reply in replies] == [400, 400]
    assert len(replies[0].content) < 2000
    assert pod.text("tiny")


def test_a_key_twice_is_refused(pod: Any) -> None:
    reply = pod.post("/v1/completions", b'{"model":"tiny","prompt":"a","model":"other"}')
    assert (reply.status, reply.json["error"]["code"]) == (400, "InvalidRequest")
    assert "'model' appears twice" in reply.json["error"]["message"]
    nested = b'{"model":"tiny","messages":[{"role":"user","content":"a","role":"system"}]}'
    assert pod.post("/v1/chat/completions", nested).status == 400


@pytest.mark.parametrize("port", [8000, 8001])
def test_two_lengths_of_one_request_are_refused_and_nothing_after_it_is_read(pod: Any, port: int) -> None:
    body = b'{"model":"tiny","prompt":"a"}'
    hidden = b"GET /readyz HTTP/1.1\r\nHost: x\r\n\r\n"
    head = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)
    with socket.create_connection((pod.address, port), timeout=20) as connection:
        connection.sendall(head % len(chunked) + chunked + hidden)
        answers = connection.makefile("rb").read()
    assert answers.count(b"HTTP/1.1 ") == 1
    assert answers.startswith(b"HTTP/1.1 400 ")
    assert b"connection: close" in answers.lower()
    assert b"may end in two places" in answers


def test_texts_beyond_the_context_are_refused_unread_and_hold_up_nobody(pod: Any) -> None:
    text = "a" * (8 * MIB - 200)
    chat = {"model": "tiny", "messages": [{"role": "user", "content": text}]}
    bodies = [("/v1/completions", {"model": "tiny", "prompt": text}), ("/v1/chat/completions", chat)] * 4
    replies: list[Any] = []
    clients = [threading.Thread(target=lambda body=body: replies.append(pod.post(*body))) for body in bodies]
    for client in clients:
        client.start()
    while any(client.is_alive() for client in clients):
        assert pod.complete("tiny", "small", seconds=20).status == 200
    assert {reply.json["error"]["code"] for reply in replies} == {"context_length_exceeded"}
    assert {reply.json["error"]["param"] for reply in replies} == {"prompt", "messages"}
    assert "characters" in replies[0].json["error"]["message"]


def test_more_tokens_than_the_context_has_are_not_made_text(pod: Any) -> None:
    reply = pod.post("/detokenize", {"model": "tiny", "tokens": [65] * (MIB - 10)})
    assert (reply.status, reply.json["error"]["code"]) == (400, "context_length_exceeded")
    assert pod.post("/detokenize", {"model": "tiny", "tokens": [65] * 100}).status == 200


@pytest.mark.parametrize("query", ["since=nan", "since=inf", "since=1e400", "wait=nan", "wait=-inf"])
def test_a_number_that_is_none_is_refused_on_the_control_port(pod: Any, query: str) -> None:
    reply = pod.control("GET", f"/status?{query}")
    assert (reply.status, reply.json["code"]) == (400, "InvalidRequest")


@pytest.mark.parametrize(
    "body",
    [{"model": "n" * MIB}, {"model": "tiny", "k" * MIB: 1}, {"model": "tiny", "stop": "s" * MIB}, {"n" * MIB: 1}],
)
def test_an_error_does_not_say_a_mebibyte_back(pod: Any, body: dict[str, Any]) -> None:
    reply = pod.post("/v1/completions", {"prompt": "a"} | body)
    assert reply.status == 400
    assert len(reply.content) < 10_000
