"""OpenAI's routes: models, completions, chat completions; and Graft's list of adapters."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse

from graft_runtime.answering.answers import Generation, Piece
from graft_runtime.answering.generation import Generator
from graft_runtime.answering.requests import ChatRequest, CompletionRequest, NamedAdapter, parse_request
from graft_runtime.errors import GraftError
from graft_runtime.http.faults import error_body, read_body
from graft_runtime.http.streaming import (
    CLIENT_GONE,
    DONE,
    ClientGoneError,
    EventStream,
    disconnected,
    event,
    unless,
)
from graft_runtime.logs import EXTRA
from graft_runtime.pod.metrics import COMPOSED
from graft_runtime.pod.pod import Pod

logger = logging.getLogger(__name__)

MAX_BODY_BYTES = 8 << 20
DIGEST_HEADER = "X-Graft-Adapter-Digest"


class _Shape:
    """How one route words its answers."""

    def __init__(self, generation: Generation, *, chat: bool) -> None:
        self._chat = chat
        self._generation = generation
        self._id = ("chatcmpl-" if chat else "cmpl-") + uuid.uuid4().hex
        self._created = int(time.time())

    def whole(self, texts: list[str], finishes: list[str | None]) -> dict[str, Any]:
        """The answer that is not streamed."""
        choices = [self._choice(i, text, finishes[i]) for i, text in enumerate(texts)]
        return self._envelope("chat.completion" if self._chat else "text_completion", choices) | {
            "usage": self._usage()
        }

    def chunk(self, piece: Piece) -> dict[str, Any]:
        """One piece of a stream."""
        if not self._chat:
            return self._envelope("text_completion", [self._choice(piece.index, piece.text, piece.finish)])
        return self._delta({"content": piece.text} if piece.text else {}, piece.finish)

    def opening(self) -> dict[str, Any] | None:
        """What a stream begins with."""
        return self._delta({"role": "assistant", "content": ""}, None) if self._chat else None

    def usage_chunk(self) -> dict[str, Any]:
        kind = "chat.completion.chunk" if self._chat else "text_completion"
        return self._envelope(kind, []) | {"usage": self._usage()}

    def _delta(self, delta: Mapping[str, str], finish: str | None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._envelope("chat.completion.chunk", [choice])

    def _choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        said = {"message": {"role": "assistant", "content": text, "refusal": None}} if self._chat else {"text": text}
        return {"index": index, **said, "logprobs": None, "finish_reason": finish}

    def _envelope(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        model = self._generation.model
        return {"id": self._id, "object": kind, "created": self._created, "model": model, "choices": choices}

    def _usage(self) -> dict[str, int]:
        prompt, generated = self._generation.prompt_tokens, self._generation.generated_tokens
        return {"prompt_tokens": prompt, "completion_tokens": generated, "total_tokens": prompt + generated}


class OpenAIRoutes:
    """The routes of one pod."""

    def __init__(self, pod: Pod, generator: Generator) -> None:
        self._pod, self._generator = pod, generator
        self._created = int(time.time())
        self._running: set[Generation] = set()
        self._ending = asyncio.Event()
        self._reason: GraftError | None = None
        """Why everything ends, once it does."""
        self.router = APIRouter()
        for path, method, endpoint in (
            ("/v1/models", "GET", self._models),
            ("/v1/models/{name}", "GET", self._model),
            ("/v1/adapters", "GET", self._adapters),
            ("/v1/completions", "POST", self._completions),
            ("/v1/chat/completions", "POST", self._chat_completions),
        ):
            self.router.add_api_route(path, endpoint, methods=[method], response_model=None)

    def end_all(self, error: GraftError) -> None:
        """Ends with this error what runs, what is about to, and what comes later."""
        self._reason = error
        self._ending.set()
        for generation in list(self._running):
            generation.fail(error)

    # what there is

    async def _models(self) -> Response:
        names = [name for name in self._pod.adapters.served() if name != self._served]
        return JSONResponse({"object": "list", "data": [self._card(name) for name in (self._served, *names)]})

    async def _model(self, name: str) -> Response:
        if not self._is_known(name):
            raise self._pod.adapters.unknown(name)
        return JSONResponse(self._card(name))

    async def _adapters(self) -> Response:
        reports = [self._pod.adapters.report(name) for name in self._pod.adapters.names()]
        data = [
            {
                "name": report.name,
                "digest": report.digest,
                "state": report.state.value,
                "tier": self._pod.adapters.tier(report.name),
                "bytes": report.bytes,
                "rank": report.rank,
                "method": report.method,
                "remapped": report.remapped,
                "error": report.fault.model_dump(mode="json") if report.fault is not None else None,
            }
            for report in reports
            if report is not None
        ]
        return JSONResponse({"object": "list", "data": data})

    @property
    def _served(self) -> str:
        return self._pod.config.served_name

    def _is_known(self, name: str) -> bool:
        return name == self._served or self._pod.adapters.is_served(name)

    def _card(self, name: str) -> dict[str, Any]:
        parent = None if name == self._served else self._served
        card = {"id": name, "object": "model", "created": self._created, "owned_by": "graft"}
        return card | {"root": name, "parent": parent}

    # what is asked

    async def _completions(self, request: Request) -> Response:
        return await self._answer(request, chat=False)

    async def _chat_completions(self, request: Request) -> Response:
        return await self._answer(request, chat=True)

    async def _answer(self, request: Request, *, chat: bool) -> Response:
        record = _Record("chat" if chat else "completions")
        try:
            body = await unless(read_body(request, MAX_BODY_BYTES), self._until_the_end())
            parsed = parse_request(body, ChatRequest) if chat else parse_request(body, CompletionRequest)
            record.name, record.adapters = parsed.model, parsed.adapters or []
            generation = await unless(
                self._generator.start(parsed), disconnected(request.receive), self._until_the_end()
            )
            record.generation = generation
            self._run(generation)
            shape, headers = _Shape(generation, chat=chat), _headers(generation)
            if parsed.stream:
                events = self._events(record, generation, shape, usage=parsed.include_usage)
                return EventStream(events, headers, lambda: self._ended(record))
            answer = await unless(self._collect(record, generation, shape), disconnected(request.receive))
        except BaseException as error:
            record.status = _status(error)
            self._ended(record)
            raise
        record.status = 200
        self._ended(record)
        return JSONResponse(answer, headers=headers)

    def _run(self, generation: Generation) -> None:
        self._running.add(generation)
        if self._reason is not None:
            generation.fail(self._reason)

    async def _until_the_end(self) -> NoReturn:
        await self._ending.wait()
        assert self._reason is not None
        raise self._reason

    async def _collect(self, record: _Record, generation: Generation, shape: _Shape) -> dict[str, Any]:
        texts = ["" for _ in generation.choices]
        finishes: list[str | None] = [None for _ in generation.choices]
        async for piece in generation.pieces():
            self._first(record)
            texts[piece.index] += piece.text
            finishes[piece.index] = piece.finish
        return shape.whole(texts, finishes)

    async def _events(
        self, record: _Record, generation: Generation, shape: _Shape, *, usage: bool
    ) -> AsyncIterator[bytes]:
        try:
            if (opening := shape.opening()) is not None:
                yield event(opening)
            async for piece in generation.pieces():
                self._first(record)
                yield event(shape.chunk(piece))
            if usage:
                yield event(shape.usage_chunk())
            record.status = 200
        except GraftError as error:
            record.status = error.code.http_status
            yield event(error_body(error))
        yield DONE

    def _first(self, record: _Record) -> None:
        if not record.answered:
            record.answered = True
            self._pod.metrics.first_token_seconds.observe(time.monotonic() - record.arrived)

    def _ended(self, record: _Record) -> None:
        generation, metrics = record.generation, self._pod.metrics
        name = generation.model if generation is not None else record.name  # a merged pool needs none
        label = COMPOSED if record.adapters else metrics.label(name, known=self._is_known(name or ""))
        metrics.requests.labels(label, record.route, str(record.status)).inc()
        told: dict[str, Any] = {"route": record.route, "model": name, "status": record.status}
        if record.adapters:
            told["adapters"] = [part.model_dump() for part in record.adapters]
        told["seconds"] = round(time.monotonic() - record.arrived, 4)
        if generation is not None:
            generation.close()
            self._running.discard(generation)
            metrics.prompt_tokens.labels(label).inc(generation.prompt_tokens)
            metrics.generated_tokens.labels(label).inc(generation.generated_tokens)
            told |= {
                "digest": generation.digest,
                "promptTokens": generation.prompt_tokens,
                "generatedTokens": generation.generated_tokens,
            }
        logger.info("request", extra={EXTRA: told})


@dataclass
class _Record:
    """What is told of a request at its end."""

    route: str
    name: str | None = None
    adapters: list[NamedAdapter] = field(default_factory=list)
    generation: Generation | None = None
    status: int = CLIENT_GONE
    answered: bool = False
    arrived: float = field(default_factory=time.monotonic)


def _headers(generation: Generation) -> dict[str, str]:
    return {DIGEST_HEADER: generation.digest} if generation.digest is not None else {}


def _status(error: BaseException) -> int:
    if isinstance(error, GraftError):
        return error.code.http_status
    return 500 if isinstance(error, Exception) and not isinstance(error, ClientGoneError) else CLIENT_GONE
