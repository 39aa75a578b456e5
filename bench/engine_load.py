"""What clients ask of a server over HTTP, and what they time: whole answers of many at once, and streams."""

from __future__ import annotations

import http.client
import json
import random
import statistics
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

REQUEST_SECONDS = 180.0
BURST_SECONDS = 0.004
"""Tokens of one step come to different clients within this time."""


@dataclass(frozen=True)
class Asked:
    """One request for text."""

    model: str
    prompt: Sequence[int]
    tokens: int
    temperature: float = 0.0


@dataclass
class Stream:
    """One streamed answer: when it was asked for, when each piece of it came, in seconds of one clock, and its end."""

    asked: float = field(default_factory=time.perf_counter)
    times: list[float] = field(default_factory=list)
    ended: bool = False


class Client:
    """Clients of one server that speaks OpenAI's API.

    Args:
        address: of the server.
        port: likewise.
        more: what each request's body has beside the usual fields.
    """

    def __init__(self, address: str, port: int, more: dict[str, Any] | None = None) -> None:
        self._address, self._port, self._more = address, port, more or {}

    def together(self, asked: Sequence[Asked], at_once: int | None = None) -> float:
        """Ask for all of these, so many at once or all; return the tokens a second of the answers."""
        started = time.perf_counter()
        with ThreadPoolExecutor(at_once or len(asked)) as clients:
            tokens = sum(clients.map(self._whole, asked))
        return tokens / (time.perf_counter() - started)

    def streams(self, asked: Sequence[Asked], meanwhile: Callable[[Sequence[Stream]], None] | None = None) -> Streams:
        """Ask for all of these at once, as streams.

        Args:
            asked: the requests.
            meanwhile: what is done while they run.
        """
        streams = [Stream() for _ in asked]
        with ThreadPoolExecutor(len(asked)) as clients:
            running = [clients.submit(self._stream, one, into) for one, into in zip(asked, streams, strict=True)]
            if meanwhile is not None:
                meanwhile(streams)
            tokens = sum(each.result() for each in running)
        return Streams(streams, tokens)

    def first_token(self, asked: Asked) -> float:
        """Return the seconds from a request to the first token of its answer."""
        stream = self.streams([asked]).streams[0]
        return stream.times[0] - stream.asked

    def _open(self, asked: Asked, *, stream: bool) -> http.client.HTTPResponse:
        body = {
            "model": asked.model,
            "prompt": [*asked.prompt],
            "max_tokens": asked.tokens,
            "temperature": asked.temperature,
            "stream": stream,
        }
        if stream:
            body["stream_options"] = {"include_usage": True}
        connection = http.client.HTTPConnection(self._address, self._port, timeout=REQUEST_SECONDS)
        headers = {"Content-Type": "application/json", "Connection": "close"}
        connection.request("POST", "/v1/completions", json.dumps(body | self._more), headers)
        response = connection.getresponse()
        if response.status != 200:
            raise RuntimeError(f"{asked.model} was answered with {response.status}: {response.read()[:500]!r}")
        return response

    def _whole(self, asked: Asked) -> int:
        with self._open(asked, stream=False) as response:
            return _count(json.load(response), asked)

    def _stream(self, asked: Asked, into: Stream) -> int:
        into.asked, tokens = time.perf_counter(), 0
        try:
            with self._open(asked, stream=True) as response:
                for line in response:
                    if line.startswith(b"data: {"):
                        said = json.loads(line[len(b"data: ") :])
                        if said.get("choices"):
                            into.times.append(time.perf_counter())
                        if said.get("usage"):
                            tokens = _count(said, asked)
        finally:
            into.ended = True
        return tokens


def _count(answer: dict[str, Any], asked: Asked) -> int:
    """Return how many tokens an answer has. Raises RuntimeError when they are not as many as were asked for."""
    made = int(answer["usage"]["completion_tokens"])
    if made != asked.tokens:
        raise RuntimeError(f"{asked.model} made {made} tokens, expected {asked.tokens}")
    return made


@dataclass(frozen=True)
class Streams:
    """Streamed answers that ran at once."""

    streams: Sequence[Stream]
    tokens: int

    @property
    def speed(self) -> float:
        """Return tokens a second, from the first request to the last token."""
        began = min(stream.asked for stream in self.streams)
        return self.tokens / (max(stream.times[-1] for stream in self.streams) - began)

    def steps(self) -> list[float]:
        """Return the seconds of the steps while all streams had begun and none had ended.

        A token that is no whole character brings no piece of text, so no stream alone shows every step.
        """
        begun = max(stream.times[0] for stream in self.streams)
        ended = min(stream.times[-1] for stream in self.streams)
        times = sorted(at for stream in self.streams for at in stream.times if begun <= at <= ended)
        starts = [at for at, before in zip(times, [float("-inf"), *times], strict=False) if at - before > BURST_SECONDS]
        return [after - before for before, after in pairwise(starts)]

    def longest_over_median(self) -> float:
        """Return the longest of the steps over their median."""
        steps = self.steps()
        return max(steps) / statistics.median(steps)


def await_tokens(stream: Stream, count: int) -> None:
    """Wait until a stream has brought so many pieces more, or has ended. Raises TimeoutError when it does neither.

    A short answer can end meanwhile: on a fast machine its last token comes before another request is answered.
    """
    wanted, deadline = len(stream.times) + count, time.monotonic() + REQUEST_SECONDS
    while len(stream.times) < wanted and not stream.ended:
        if time.monotonic() > deadline:
            raise TimeoutError("a stream brings no more tokens")
        time.sleep(0.001)


class Prompts:
    """Random prompts that no server has seen before.

    Args:
        vocabulary: token ids to draw from.
        seed: of the draws.
    """

    def __init__(self, vocabulary: range, seed: int = 0) -> None:
        self._vocabulary, self._random = vocabulary, random.Random(seed)
        self._lock = threading.Lock()

    def __call__(self, length: int) -> list[int]:
        """Return a prompt of so many tokens."""
        with self._lock:
            return self._random.choices(self._vocabulary, k=length)

    def zipf(self, names: Sequence[str], count: int, exponent: float = 1.1) -> list[str]:
        """Return names drawn by popularity: the n-th of all is asked for in proportion to 1 / n ** exponent."""
        weights = [1 / (place + 1) ** exponent for place in range(len(names))]
        with self._lock:
            return self._random.choices(names, weights, k=count)


def uneven(mean: int, count: int) -> Iterable[int]:
    """Return lengths from half the mean to one and a half of it, whose mean it is."""
    steps = [round(mean / 2 + mean * place / max(1, count - 1)) for place in range(count)]
    return steps if count > 1 else [mean]
