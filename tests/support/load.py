"""A constant load: clients who ask all the time, know what the answers must be, and judge what they get."""

from __future__ import annotations

import http.client
import itertools
import json
import select
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

CLIENT_SECONDS = 60.0
PAUSE_SECONDS = 0.2
"""Of a client between two requests."""


class Outcome(StrEnum):
    """What became of a request."""

    RIGHT = "right"
    ERROR = "error in OpenAI's shape"
    CUT = "connection refused or cut"
    """No answer, and nobody can take it for one: what has come so far is the beginning of the right one."""
    WRONG = "wrong"


@dataclass(frozen=True)
class Asked:
    """A request and what must come of it."""

    name: str
    prompt: str
    tokens: int
    streamed: bool
    text: str
    digest: str | None
    chat: bool = False
    """The prompt is what a user says."""

    @property
    def path(self) -> str:
        return "/v1/chat/completions" if self.chat else "/v1/completions"

    @property
    def body(self) -> bytes:
        wanted = {"model": self.name, "max_tokens": self.tokens, "temperature": 0, "stream": self.streamed}
        said = {"messages": [{"role": "user", "content": self.prompt}]} if self.chat else {"prompt": self.prompt}
        return json.dumps(wanted | said).encode()


@dataclass(frozen=True)
class Result:
    """Of one request; times of the monotonic clock."""

    asked: Asked
    began: float
    ended: float
    outcome: Outcome
    why: str = ""


@dataclass
class Received:
    """What came over the connection."""

    status: int = 0
    headers: dict[str, str] = field(default_factory=dict)
    """By lower-case name."""
    content: bytes = b""
    whole: bool = False
    why: str = "nothing came"

    def judged(self, asked: Asked) -> tuple[Outcome, str]:
        """What it is, and why."""
        if self.status == 0 or (self.status != 200 and not self.whole):
            return Outcome.CUT, self.why
        if self.status != 200:
            return _judged_error(self.status, self.content, self.headers)
        if self.headers.get("x-graft-adapter-digest") != asked.digest:
            return Outcome.WRONG, f"digest {self.headers.get('x-graft-adapter-digest')}, expected {asked.digest}"
        if asked.streamed:
            return self._judged_stream(asked)
        if not self.whole:
            return Outcome.CUT, self.why
        answer = json.loads(self.content)
        return _judged_text(asked, answer["model"], _text(answer["choices"][0]), self.content)

    def _judged_stream(self, asked: Asked) -> tuple[Outcome, str]:
        events, _, rest = self.content.rpartition(b"\n\n")
        told = [
            event.removeprefix(b"data: ") for event in events.split(b"\n\n") if event and not event.startswith(b":")
        ]
        values = [json.loads(event) for event in told if event != b"[DONE]"]
        errors = [value for value in values if "error" in value]
        chunks = [value for value in values if "choices" in value]
        text = "".join(_text(chunk["choices"][0]) for chunk in chunks)
        if any(chunk["model"] != asked.name for chunk in chunks) or not asked.text.startswith(text):
            return Outcome.WRONG, f"a stream of {text!r}, expected {asked.text!r}"
        if errors:
            return _judged_error(500, json.dumps(errors[-1]).encode())
        finished = bool(chunks) and chunks[-1]["choices"][0]["finish_reason"] is not None
        if self.whole and finished and told[-1] == b"[DONE]" and not rest:
            return _judged_text(asked, chunks[-1]["model"], text, self.content)
        # Whoever reads the end of the connection as the end of the answer is misled.
        misleads = self.whole or finished
        return (Outcome.WRONG if misleads else Outcome.CUT), f"{self.why} after {text!r}"


def _text(choice: Mapping[str, Any]) -> str:
    said = choice.get("delta") or choice.get("message") or {}
    return str(choice.get("text") or said.get("content") or "")


def _judged_text(asked: Asked, model: str, text: str, content: bytes) -> tuple[Outcome, str]:
    if (model, text) == (asked.name, asked.text):
        return Outcome.RIGHT, ""
    return Outcome.WRONG, f"{content[:300]!r}, expected {asked.text!r}"


def _judged_error(status: int, content: bytes, headers: Mapping[str, str] | None = None) -> tuple[Outcome, str]:
    """A name that is served is never refused for good: 5xx, which clients try again; 503 says when."""
    try:
        error = json.loads(content)["error"]
        told = f"{status} {error['code']}: {error['message']}"
        shaped = {"message", "type", "param", "code"} <= error.keys()
    except (ValueError, TypeError, KeyError):
        return Outcome.WRONG, f"{status}, no error in OpenAI's shape: {content[:300]!r}"
    retried = status == 500 or (status == 503 and "retry-after" in (headers or {}))
    return (Outcome.ERROR if shaped and retried else Outcome.WRONG), told


class Client:
    """Asks one thing after the other, on a connection of its own each, or on one that it keeps."""

    def __init__(self, address: str, *, keeps: bool) -> None:
        self._address, self._keeps = address, keeps
        self._connection: http.client.HTTPConnection | None = None

    def ask(self, asked: Asked) -> Result:
        began = time.monotonic()
        received = Received()
        try:
            self._receive(asked, received)
        except TimeoutError as error:  # nobody may be left hanging
            return Result(asked, began, time.monotonic(), Outcome.WRONG, repr(error))
        except (OSError, http.client.HTTPException) as error:
            received.why = repr(error)
        if not self._keeps or not received.whole:
            self.close()
        return Result(asked, began, time.monotonic(), *received.judged(asked))

    def _receive(self, asked: Asked, received: Received) -> None:
        if self._connection is not None and _has_ended(self._connection):
            self.close()
        if self._connection is None:
            self._connection = http.client.HTTPConnection(self._address, timeout=CLIENT_SECONDS)  # HOST:PORT
        self._connection.request("POST", asked.path, asked.body, {"Content-Type": "application/json"})
        response = self._connection.getresponse()
        received.status = response.status
        received.headers = {name.lower(): value for name, value in response.getheaders()}
        while piece := response.read1():
            received.content += piece
        received.whole = not response.length  # bytes that are missing
        response.close()

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _has_ended(connection: http.client.HTTPConnection) -> bool:
    """Whether the other side has closed a connection on which nothing is awaited: clients look before they ask."""
    return connection.sock is not None and bool(select.select([connection.sock], [], [], 0)[0])


class Load:
    """Clients who ask all the time, each for every name in turn."""

    def __init__(
        self, address: str, kinds: Mapping[str, Sequence[Asked]], pause_seconds: float = PAUSE_SECONDS
    ) -> None:
        self._pause_seconds = pause_seconds
        self.names = {one.name for asked in kinds.values() for one in asked}
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._results: list[Result] = []
        self._faults: list[BaseException] = []
        self._under_way: dict[str, float] = {}
        self._threads = [
            threading.Thread(target=self._run, args=(Client(address, keeps=kind.startswith("kept")), asked), name=kind)
            for kind, asked in kinds.items()
        ]
        for thread in self._threads:
            thread.start()

    def results(self, since: float) -> list[Result]:
        """Of the requests that ended since this time of the monotonic clock."""
        assert not self._faults, self._faults
        with self._lock:
            return [result for result in self._results if result.ended >= since]

    def held(self, seconds: float) -> int:
        """How many requests have been under way for so long."""
        before = time.monotonic() - seconds
        with self._lock:
            return sum(began < before for began in self._under_way.values())

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _run(self, client: Client, asked: Sequence[Asked]) -> None:
        try:
            for one in itertools.cycle(asked):
                name = threading.current_thread().name
                with self._lock:
                    self._under_way[name] = time.monotonic()
                result = client.ask(one)
                with self._lock:
                    del self._under_way[name]
                    self._results.append(result)
                if self._stop.wait(self._pause_seconds):
                    break
        except BaseException as fault:  # told by `results`
            self._faults.append(fault)
        finally:
            client.close()
