"""Requests for text from their body to their last byte: read, started, sent whole or streamed, recorded."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, NoReturn, TypeVar

from fastapi import Request, Response
from fastapi.responses import JSONResponse

from graft_runtime.answering.answers import Generation, Piece, put_together
from graft_runtime.answering.asked import NamedAdapter
from graft_runtime.answering.callers import Caller
from graft_runtime.answering.generation import Generator
from graft_runtime.answering.models import Models
from graft_runtime.answering.passes import Passed
from graft_runtime.errors import GraftError
from graft_runtime.http.bodies import AnyBody, Parsed, parse_body
from graft_runtime.http.callers import caller_of
from graft_runtime.http.large_bodies import LargeBodies
from graft_runtime.http.reading import SMALL_BODY_BYTES, Bodies
from graft_runtime.http.routes.text import AskedBody, Words
from graft_runtime.http.streaming import (
    CLIENT_GONE,
    ClientGoneError,
    EventStream,
    disconnected,
    unless,
)
from graft_runtime.logs import EXTRA
from graft_runtime.pod.metrics import COMPOSED, Metrics

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
BODIES_BYTES = 64 << 20
DIGEST_HEADER = "X-Graft-Adapter-Digest"
ADAPTERS_HEADER = "X-Graft-Adapters"
"""The names in a sum of adapters, in the order of the request."""


AnyAsked = TypeVar("AnyAsked", bound=AskedBody)


class Generations:
    """All requests for text of one pod.

    Args:
        generator: starts them.
        models: the names that they may use.
        metrics: count them.
    """

    def __init__(self, generator: Generator, models: Models, metrics: Metrics) -> None:
        self._generator, self._models, self._metrics = generator, models, metrics
        self._bodies = Bodies(MAX_BODY_BYTES, BODIES_BYTES)
        self._large = LargeBodies()
        self._running: set[Generation] = set()
        self._ending = asyncio.Event()
        self._reason: GraftError | None = None
        """Why everything ends, once it does."""

    def end_all(self, error: GraftError) -> None:
        """End with this error what runs, what is about to, and what comes later."""
        self._reason = error
        self._ending.set()
        for generation in list(self._running):
            generation.fail(error)

    async def answer(
        self, request: Request, route: str, body: type[AnyAsked], words: Callable[[Generation, AnyAsked], Words]
    ) -> Response:
        """Return the answer of one route.

        Args:
            route: its name in logs and metrics.
            body: what it takes.
            words: how it answers.

        Raises:
            GraftError: what `read` and `Generator.start` raise, and the engine's fault.
            ClientGoneError: nobody waits for the answer any more.
        """
        record = _Record(route)
        with self._told(record):
            self._generator.check_room()
            parsed = await unless(self.read(request, body.of), self._until_the_end())
            asked = parsed.asked(caller_of(request))
            record.name, record.adapters, record.key = asked.model, asked.adapters, asked.caller.name
            generation = await unless(
                self._generator.start(asked), disconnected(request.receive), self._until_the_end()
            )
            record.generation = generation
            self._run(generation)
            worded, headers = words(generation, parsed), _headers(generation, asked.adapters)
            if parsed.stream:
                events = self._events(record, generation, worded)
                return EventStream(events, headers, lambda: self._ended(record))
            answer = await unless(self._collect(record, generation, worded), disconnected(request.receive))
        record.status = 200
        self._ended(record)
        return JSONResponse(answer, headers=headers)

    async def pass_texts(
        self,
        request: Request,
        route: str,
        body: type[AnyBody],
        run: Callable[[AnyBody, Caller], Coroutine[Any, Any, Passed]],
        word: Callable[[AnyBody, Passed], dict[str, Any]],
    ) -> Response:
        """Return the answer of a route that makes no text.

        Args:
            route: its name in logs and metrics.
            body: what it takes.
            run: has the model pass the texts of a body.
            word: makes the answer of a body's texts.

        Raises:
            GraftError: what `read`, `run` and `word` raise.
            ClientGoneError: nobody waits for the answer any more.
        """
        record = _Record(route)
        with self._told(record):
            self._generator.check_room()
            parsed = await unless(self.read(request, body.of), self._until_the_end())
            caller = caller_of(request)
            record.name, record.key = getattr(parsed, "model", None), caller.name
            passed = await unless(run(parsed, caller), disconnected(request.receive), self._until_the_end())
            record.generation, answer = passed, word(parsed, passed)
        record.status = 200
        self._ended(record)
        return JSONResponse(answer, headers=_headers(passed, ()))

    @contextlib.contextmanager
    def _told(self, record: _Record) -> Iterator[None]:
        """Have log and metrics tell of a request that fails."""
        try:
            yield
        except BaseException as error:
            record.status = _status(error)
            self._ended(record)
            raise

    async def read(self, request: Request, build: Callable[[dict[str, Any]], Parsed]) -> Parsed:
        """Return what `build` makes of the request's body. Raises what `Bodies.read` raises, and `parse_body`."""
        async with self._bodies.read(request) as content:
            if len(content) <= SMALL_BODY_BYTES:
                return parse_body(content, build)
            return await self._large.parse(content, build)

    def _run(self, generation: Generation) -> None:
        self._running.add(generation)
        if self._reason is not None:
            generation.fail(self._reason)

    async def _until_the_end(self) -> NoReturn:
        await self._ending.wait()
        assert self._reason is not None
        raise self._reason.again()

    async def _collect(self, record: _Record, generation: Generation, words: Words) -> dict[str, Any]:
        pieces: list[list[Piece]] = [[] for _ in generation.choices]
        async for piece in generation.pieces():
            self._came(record, piece)
            pieces[piece.index].append(piece)
        return words.whole([put_together(each) for each in pieces])

    async def _events(self, record: _Record, generation: Generation, words: Words) -> AsyncIterator[bytes]:
        try:
            for opening in words.openings():
                yield words.encoded(opening)
            async for piece in generation.pieces():
                self._came(record, piece)
                for chunk in words.chunks(piece):
                    yield words.encoded(chunk)
            for closing in words.closings():
                yield words.encoded(closing)
            record.status = 200
            if words.last:
                yield words.last
        except GraftError as error:
            record.status = error.code.http_status
            yield words.encoded(words.failure(error))

    def _came(self, record: _Record, piece: Piece) -> None:
        now, metrics = time.monotonic(), self._metrics
        if not record.last:
            metrics.first_token_seconds.observe(now - record.arrived)
            metrics.vllm.first.observe(now - record.arrived)
        if (before := record.last.get(piece.index)) is not None:
            metrics.vllm.between.observe(now - before)
        record.last[piece.index] = now

    def _ended(self, record: _Record) -> None:
        generation, metrics = record.generation, self._metrics
        name = generation.model if generation is not None else record.name  # a merged pool needs none
        label = COMPOSED if record.adapters else metrics.label(name, known=self._models.is_known(name or ""))
        metrics.requests.labels(label, record.route, str(record.status)).inc()
        line: dict[str, Any] = {"route": record.route, "model": name, "status": record.status}
        if record.key is not None:
            line["key"] = record.key
        if record.adapters:
            line["adapters"] = [asdict(part) for part in record.adapters]
        seconds = time.monotonic() - record.arrived
        line["seconds"] = round(seconds, 4)
        if record.status == 200:
            metrics.vllm.whole.observe(seconds)
        if isinstance(generation, Generation):
            generation.close()
            self._running.discard(generation)
        if generation is not None:
            metrics.prompt_tokens.labels(label).inc(generation.prompt_tokens)
            metrics.known_tokens.labels(label).inc(generation.known_tokens)
            metrics.generated_tokens.labels(label).inc(generation.generated_tokens)
            if record.key is not None:
                metrics.key_tokens.labels(record.key, "prompt").inc(generation.prompt_tokens)
                metrics.key_tokens.labels(record.key, "generated").inc(generation.generated_tokens)
            line |= {
                "digest": generation.digest,
                "promptTokens": generation.prompt_tokens,
                "generatedTokens": generation.generated_tokens,
            }
        logger.info("request", extra={EXTRA: line})


@dataclass
class _Record:
    """What the log and the metrics hold of a request at its end."""

    route: str
    name: str | None = None
    key: str | None = None
    """The name of the API key that it came with; None where none is asked for."""
    adapters: Sequence[NamedAdapter] = ()
    generation: Generation | Passed | None = None
    status: int = CLIENT_GONE
    last: dict[int, float] = field(default_factory=dict)
    """When the last piece of each choice came."""
    arrived: float = field(default_factory=time.monotonic)


def _headers(generation: Generation | Passed, adapters: Sequence[NamedAdapter]) -> dict[str, str]:
    headers = {DIGEST_HEADER: generation.digest} if generation.digest is not None else {}
    return headers | ({ADAPTERS_HEADER: ", ".join(part.name for part in adapters)} if adapters else {})


def _status(error: BaseException) -> int:
    if isinstance(error, GraftError):
        return error.code.http_status
    return 500 if isinstance(error, Exception) and not isinstance(error, ClientGoneError) else CLIENT_GONE
