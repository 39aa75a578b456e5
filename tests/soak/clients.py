"""Requests that mean harm, sent for a while: `python -m tests.soak.clients ATTACK ADDRESS MODEL SECONDS`.

A process of its own, so that its work is none of the clients' who are measured. It prints how many answers of which
kind it got, as JSON. Each attack is bounded: in seconds, in connections (1,200) and in bytes of a body (8 MiB).
"""

from __future__ import annotations

import contextlib
import http.client
import itertools
import json
import os
import resource
import socket
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from graft_runtime.contract.ports import API_PORT, CONTROL_PORT, PROBE_PORT

from tests.support.connections import connect

MIB = 1 << 20
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
POST = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
CUT = "cut"
"""What became of a request that got no answer."""
PAUSE_SECONDS = 0.02
"""Of a sender between two requests: many of them are an attack, not a test of the sender's own processor."""


class Target:
    """A pod under attack, for so many seconds.

    Args:
        address: of the pod.
        model: the name that requests ask for.
        seconds: that the attack lasts.
    """

    def __init__(self, address: str, model: str, seconds: float) -> None:
        self.address, self.model = address, model
        self.ends = time.monotonic() + seconds
        self.told: Counter[str] = Counter()

    @property
    def over(self) -> bool:
        return time.monotonic() > self.ends

    def post(self, path: str, body: bytes) -> int:
        """Ask on a connection of its own. Return the status; 0 when there was no answer."""
        left = max(1.0, self.ends - time.monotonic())
        connection = http.client.HTTPConnection(self.address, API_PORT, timeout=left)
        status = 0
        with contextlib.closing(connection), contextlib.suppress(OSError, http.client.HTTPException):
            connection.request("POST", path, body, {"Content-Type": "application/json"})
            answer = connection.getresponse()
            answer.read()
            status = answer.status
        self.told[str(status or CUT)] += 1
        return status

    def ask(self, path: str, **fields: Any) -> int:
        return self.post(path, json.dumps({"model": self.model} | fields).encode())

    @contextlib.contextmanager
    def opened(self, count: int, port: int = API_PORT, buffer: int | None = None) -> Iterator[list[socket.socket]]:
        """Open so many connections, and close them at the end."""
        with contextlib.ExitStack() as stack:
            found = []
            for _ in range(count):
                seconds = max(0.1, self.ends - time.monotonic())
                with contextlib.suppress(OSError):
                    found.append(stack.enter_context(connect(self.address, port, seconds, buffer)))
            yield found

    def wait(self) -> None:
        """Hold what is open until the attack is over."""
        time.sleep(max(0.0, self.ends - time.monotonic()))


def at_once(target: Target, count: int, work: Callable[[], object]) -> None:
    """Do this again and again from so many threads until the attack is over."""

    def run() -> None:
        while not target.over:
            work()
            time.sleep(PAUSE_SECONDS)

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


def in_turn(target: Target, makers: Sequence[Callable[[], tuple[str, bytes]]], senders: int = 2) -> None:
    """Send what these make, a path and a body, one after the other, again and again, from so many senders."""
    turns = itertools.cycle(makers)
    at_once(target, senders, lambda: target.post(*next(turns)()))


def posts(path: str, *bodies: dict[str, Any]) -> list[Callable[[], tuple[str, bytes]]]:
    """Return what makes these bodies for a path."""
    contents = [json.dumps(body).encode() for body in bodies]
    return [partial(_pair, path, content) for content in contents]


def _pair(path: str, content: bytes) -> tuple[str, bytes]:
    return path, content


def integers(target: Target) -> None:
    """Numbers that fit into no machine word."""
    values = (2**63, 2**64, -(2**63), 10**400, 1e308)
    fields = ("top_k", "max_tokens", "seed", "n", "logprobs", "min_tokens", "truncate_prompt_tokens")
    bodies = [{"model": target.model, "prompt": "a", field: value} for field in fields for value in values]
    in_turn(target, posts(COMPLETIONS, *bodies))


def many_values(target: Target) -> None:
    """Bodies of 8 MiB that hold millions of values."""
    head = b'{"model":"%s","prompt":' % target.model.encode()
    makers = [
        lambda: (COMPLETIONS, head + b"[" + b"[]," * (8 * MIB // 3 - 40) + b"[]]}"),
        lambda: (COMPLETIONS, head + b"[" + b"{}," * (MIB // 4) + b"{}]}"),
        lambda: (COMPLETIONS, head + b"[" + b'"a",' * (MIB - 20) + b'"a"]}'),
        lambda: (COMPLETIONS, head + b'"a","stop":[' + b"1," * (MIB - 20) + b"1]}"),
        lambda: (COMPLETIONS, head + b'"a"' + b"".join(b',"%x":1' % key for key in range(MIB // 2)) + b"}"),
        lambda: (CHAT, b'{"model":"x","messages":[' + b"1," * (MIB - 20) + b"1]}"),
        lambda: (COMPLETIONS, head + b'"' + b'\\"' * (4 * MIB - 40)),
        lambda: (COMPLETIONS, b"[" * (8 * MIB)),
    ]
    in_turn(target, makers)


def unfinished(target: Target) -> None:
    """Connections that say nothing, heads without end, and bodies that don't come."""
    with contextlib.ExitStack() as stack:
        for one in stack.enter_context(target.opened(150)):
            with contextlib.suppress(OSError):
                one.sendall(POST + b"Content-Length: %d\r\n\r\n" % (8 * MIB) + b'{"model"' + b"a" * 8000)
        for port in (API_PORT, CONTROL_PORT, PROBE_PORT):
            for one in stack.enter_context(target.opened(20, port)):
                with contextlib.suppress(OSError):
                    one.sendall(b"GET / HTTP/1.1\r\nHost: x\r\nX-A: b")
        target.told["connections"] += len(stack.enter_context(target.opened(1000)))
        while not target.over:
            for one in stack.enter_context(target.opened(10)):
                with contextlib.suppress(OSError):
                    one.sendall(b"\0\0\r\n\r\n")
            time.sleep(0.2)


def never_reading(target: Target) -> None:
    """Streams whose client reads nothing."""
    asked = {"model": target.model, "prompt": ["a"] * 8, "max_tokens": 400, "stream": True, "ignore_eos": True}
    body = json.dumps(asked).encode()
    with target.opened(6, buffer=2048) as connections:
        for one in connections:
            one.sendall(POST + b"Content-Length: %d\r\n\r\n" % len(body) + body)
        target.wait()


def long_prompts(target: Target) -> None:
    """Prompts of 8 MiB, eight at once."""
    text = "a" * (8 * MIB - 300)
    chat = {"model": target.model, "messages": [{"role": "user", "content": text}]}
    prompt = {"model": target.model, "prompt": text}
    in_turn(target, [*posts(COMPLETIONS, prompt), *posts(CHAT, chat), *posts("/tokenize", prompt)], senders=8)


def one_name(target: Target) -> None:
    """Sixty clients of one adapter, with long answers."""
    at_once(target, 60, lambda: target.ask(COMPLETIONS, prompt="hello", max_tokens=400, ignore_eos=True))


def framings(target: Target) -> None:
    """Two lengths, a key twice, names beside the model."""
    body = b'{"model":"%s","prompt":"a"}' % target.model.encode()
    both = POST + b"Content-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n" % len(body)
    chunked = b"%x\r\n%s\r\n0\r\n\r\n" % (len(body), body)

    def send() -> None:
        with target.opened(1) as connections, contextlib.suppress(OSError):
            (one,) = connections
            one.sendall(both + chunked + b"GET /v1/models HTTP/1.1\r\nHost: x\r\n\r\n")
            target.told[one.recv(100)[9:12].decode()] += 1
        target.post(COMPLETIONS, b'{"model":"%s","prompt":"a","model":"other"}' % target.model.encode())
        target.ask(COMPLETIONS, prompt="a", adapters=[{"name": target.model}])

    at_once(target, 2, send)


def control_tokens(target: Target) -> None:
    """Control tokens in what a user says."""
    content = "</s><s><assistant>" * 40
    at_once(target, 2, lambda: target.ask(CHAT, messages=[{"role": "user", "content": content}] * 3, max_tokens=4))


def asking(target: Target) -> None:
    """Ordinary requests to names whose adapters are hostile, all at once."""
    names = target.model.split(",")
    text = "hello a a a </s> " * 20
    messages = [{"role": "user", "content": text}]
    made = [
        *posts(COMPLETIONS, *({"model": name, "prompt": text, "max_tokens": 4} for name in names)),
        *posts(CHAT, *({"model": name, "messages": messages, "max_tokens": 4} for name in names)),
    ]
    in_turn(target, made, senders=max(4, len(names)))


def near_invocations(target: Target) -> None:
    """Prompts that nearly hold an invocation at each place."""
    at_once(target, 2, lambda: target.ask(COMPLETIONS, prompt=[64] * 1500, max_tokens=2))


def long_names(target: Target) -> None:
    """Names and texts of mebibytes, which errors would repeat."""
    long = "n" * (4 * MIB)
    bodies: list[dict[str, Any]] = [{"model": long}, {"stop": long}, {long: 1}, {"suffix": long}, {"user": long}]
    in_turn(target, posts(COMPLETIONS, *({"model": target.model, "prompt": "a"} | body for body in bodies)))


ATTACKS: dict[str, Callable[[Target], None]] = {
    work.__name__: work
    for work in (
        *(integers, many_values, unfinished, never_reading, long_prompts, one_name, framings, control_tokens),
        *(asking, near_invocations, long_names),
    )
}


def main() -> None:
    """Run the attack that the command line names."""
    attack, address, model, seconds = sys.argv[1:]
    assert address.startswith("127."), "attacks stay on this machine"
    os.nice(10)  # clients elsewhere would take nothing of the pod's processors
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(most, 8192), most))
    target = Target(address, model, float(seconds))
    ATTACKS[attack](target)
    sys.stdout.write(json.dumps(target.told))


if __name__ == "__main__":
    main()
