"""The requests that run on an engine, and how it is doing: the same whichever engine it is."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import Callable
from dataclasses import dataclass

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    Cancel,
    Command,
    Encode,
    Encoded,
    Event,
    Generate,
    Generated,
    Occupancy,
    StepDone,
    TokenLogprob,
)
from graft_runtime.pod.engine_port import EnginePort

STALL_SECONDS = 60.0
STALL_STEPS = 10
"""No step for this many times the slowest one, and at least STALL_SECONDS, while work is pending: a stall."""


@dataclass
class Progress:
    """How the step loop is doing."""

    last_change: float = 0.0
    """When a step ended or work came after none; seconds of the monotonic clock."""
    slowest: float = 0.0
    """Seconds of the slowest step so far."""

    def stalled(self, now: float, *, pending: bool) -> bool:
        """Tell whether work is pending and no step has ended for too long."""
        return pending and now - self.last_change > max(STALL_SECONDS, STALL_STEPS * self.slowest)


class Answer:
    """The tokens of one request as they come."""

    def __init__(self, client: EngineClient, request: str) -> None:
        self._client = client
        self.request = request
        self._tokens: list[int] = []
        self.known = 0
        """Tokens of the prompt whose keys and values the engine had."""
        self._logprobs: list[TokenLogprob] = []
        self.end: int | None = None
        """The stop token, once it has come."""
        self.prompt_logprobs: list[TokenLogprob] = []
        """Of the prompt's tokens from the second on, once the first token is there, where they were asked for."""
        self._finish: str | None = None
        self._fault: GraftError | None = None
        self._news = asyncio.Event()
        self.ended: Callable[[], None] | None = None
        """Called when the engine is done with it."""

    async def next(self) -> tuple[list[int], str | None]:
        """Return the tokens since the last call, and `stop` or `length` with the last of them.

        Raises:
            GraftError: the engine's fault, or that of `fail`.
        """
        await self._news.wait()
        self._news.clear()
        tokens, self._tokens = self._tokens, []
        if self._fault is None:
            return tokens, self._finish
        if not tokens:
            raise self._fault.again()
        self._news.set()  # the fault comes after what was there before it
        return tokens, None

    def take_logprobs(self, count: int) -> list[TokenLogprob]:
        """Return what was told of the next so many tokens, once, where it was asked for."""
        told, self._logprobs = self._logprobs[:count], self._logprobs[count:]
        return told

    def feed(self, generated: Generated) -> None:
        self._tokens.extend(generated.tokens)
        self.known += generated.known
        self._logprobs.extend(generated.logprobs)
        self.prompt_logprobs += generated.prompt_logprobs
        self.end = generated.end
        if generated.finish == "error":
            fault = generated.fault
            self._fault = fault.error() if fault else GraftError(ErrorCode.INTERNAL, "the engine failed")
        self._finish = generated.finish
        self._news.set()
        if self._finish is not None:
            self._end()

    def fail(self, error: GraftError) -> None:
        """End the answer: whoever waits gets this error, and the engine is told to stop. A whole answer stays one."""
        if self._finish is None:
            self._fault = error
            self._news.set()
            self.cancel()

    def cancel(self) -> None:
        """Free the place of the request; once or more often, also after the answer's end."""
        if self._client.cancel(self.request):
            self._end()

    def _end(self) -> None:
        if self.ended is not None:
            self.ended()


class EngineClient:
    """The pod's side of one engine.

    Args:
        engine: which one.
        heard: called with each event that is no request's.
    """

    def __init__(self, engine: EnginePort, heard: Callable[[Event], None]) -> None:
        self._engine, self._heard = engine, heard
        self._answers: dict[str, Answer] = {}
        self._passes: dict[str, asyncio.Future[Encoded]] = {}
        """Texts that take one pass, by request."""
        self._numbers = itertools.count(1)
        self._refusal: GraftError | None = None
        self.progress = Progress()
        self.occupancy = Occupancy()

    @property
    def pending(self) -> int:
        """Return how many requests are under way."""
        return len(self._answers) + len(self._passes)

    @property
    def stalled(self) -> bool:
        return self.progress.stalled(time.monotonic(), pending=bool(self.pending))

    async def run(self) -> int | None:
        """Run the engine until it ends, and return its exit status where that is known."""
        return await self._engine.run(self._dispatch)

    async def started(self) -> None:
        """Wait until the engine takes commands."""
        await self._engine.started()

    def send(self, command: Command) -> None:
        """Hand a command over, in order. One that is sent before the engine has started is a programming error."""
        self._engine.send(command)

    def submit(self, make: Callable[[str], Generate]) -> Answer:
        """Start a request; `make` gets the request's name. One that can't be sent is not waited for."""
        name = self._started(make)
        answer = self._answers[name] = Answer(self, name)
        return answer

    async def encode(self, make: Callable[[str], Encode]) -> Encoded:
        """Return what the model says of one text. Raises GraftError: the engine's fault."""
        name = self._started(make)
        told: asyncio.Future[Encoded] = asyncio.get_running_loop().create_future()
        self._passes[name] = told
        try:
            return await told
        finally:
            if self._passes.pop(name, None) is not None:
                self.send(Cancel(name))

    def refuse(self, error: GraftError) -> None:
        """Fail every request that is under way, and each that comes from now on."""
        self._refusal = error
        for answer in tuple(self._answers.values()):
            answer.fail(error)
        for told in self._passes.values():
            if not told.done():
                told.set_exception(error.again())

    def cancel(self, request: str) -> bool:
        """Have the engine stop a request; return False where that has ended already."""
        if self._answers.pop(request, None) is None:
            return False
        self.send(Cancel(request))
        return True

    def _started(self, make: Callable[[str], Generate | Encode]) -> str:
        if self._refusal is not None:
            raise self._refusal.again()
        name = str(next(self._numbers))
        self.send(make(name))
        if not self.pending:
            self.progress.last_change = time.monotonic()
        return name

    def _dispatch(self, event: Event) -> None:
        match event:
            case Generated():
                find = self._answers.get if event.finish is None else self._answers.pop
                if (answer := find(event.request, None)) is not None:
                    answer.feed(event)
            case Encoded():
                told = self._passes.pop(event.request, None)
                if told is not None and not told.done():
                    told.set_result(event) if event.fault is None else told.set_exception(event.fault.error())
            case StepDone():
                progress = self.progress
                progress.last_change = time.monotonic()
                progress.slowest = max(progress.slowest, event.seconds)
                self._heard(event)
            case Occupancy():
                self.occupancy = event
            case _:
                self._heard(event)
