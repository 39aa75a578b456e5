"""The HTTP applications of a pod, one for each port."""

from __future__ import annotations

import logging
import re
import uuid
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, PlainTextResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp, Receive, Scope, Send

from graft_runtime.answering.generation import Generator
from graft_runtime.answering.models import Models
from graft_runtime.answering.passes import Passes
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.api_keys import ApiKeys
from graft_runtime.http.bodies import Body
from graft_runtime.http.callers import WithCaller
from graft_runtime.http.control import control_router
from graft_runtime.http.faults import error_response, fault_response
from graft_runtime.http.framing import OneLength
from graft_runtime.http.generations import ADAPTERS_HEADER, DIGEST_HEADER, Generations
from graft_runtime.http.openapi import openapi
from graft_runtime.http.page import WithPage
from graft_runtime.http.routes.chat import ChatBody, chat_router
from graft_runtime.http.routes.classify import ClassifyBody, classify_router
from graft_runtime.http.routes.completions import CompletionBody, completions_router
from graft_runtime.http.routes.embeddings import EmbeddingBody, embeddings_router
from graft_runtime.http.routes.models import models_router
from graft_runtime.http.routes.relevance import RerankBody, ScoreBody, relevance_router
from graft_runtime.http.routes.responses import ResponsesBody, responses_router
from graft_runtime.http.routes.server import server_router
from graft_runtime.http.routes.tokens import DetokenizeBody, TokenizeChat, TokenizeText, tokens_router
from graft_runtime.http.streaming import CLIENT_GONE, ClientGoneError
from graft_runtime.logs import request_id
from graft_runtime.pod.pod import Pod

logger = logging.getLogger(__name__)

BODIES: Mapping[str, Sequence[type[Body]]] = {
    "/v1/completions": (CompletionBody,),
    "/v1/chat/completions": (ChatBody,),
    "/v1/responses": (ResponsesBody,),
    "/v1/embeddings": (EmbeddingBody,),
    "/classify": (ClassifyBody,),
    "/score": (ScoreBody,),
    "/v1/score": (ScoreBody,),
    "/rerank": (RerankBody,),
    "/v1/rerank": (RerankBody,),
    "/v2/rerank": (RerankBody,),
    "/tokenize": (TokenizeText, TokenizeChat),
    "/detokenize": (DetokenizeBody,),
}
"""What may be posted, by path."""
REQUEST_ID_HEADER = "X-Request-Id"
EXPOSED_HEADERS = (REQUEST_ID_HEADER, DIGEST_HEADER, ADAPTERS_HEADER, "Retry-After")
"""What scripts of pages may read of an answer."""
_REQUEST_ID = re.compile(r"[A-Za-z0-9._:-]{1,128}")


def api_app(pod: Pod, models: Models, generations: Generations, generator: Generator, keys: ApiKeys | None) -> ASGIApp:
    """Return the application of port 8000: OpenAI's API, and what clients of other servers ask beside it.

    Where the pool asks for keys, all of it but the page is behind them.
    """
    app, passes = _app(error_response), Passes(generator, pod.engine.encode)
    for router in (
        models_router(models, pod.adapters, lambda: pod.base.context_length),
        completions_router(generations),
        chat_router(generations),
        responses_router(generations),
        embeddings_router(generations, passes),
        classify_router(generations, passes),
        relevance_router(generations, passes),
        tokens_router(generations, generator),
        server_router(pod),
    ):
        app.include_router(router)
    document = JSONResponse(openapi(app, BODIES)).body  # encoded once: it has hundreds of kilobytes

    @app.get("/openapi.json", include_in_schema=False)
    async def get_document() -> Response:
        return Response(document, media_type="application/json")

    behind_keys: ASGIApp = WithCaller(app, keys, pod.metrics)
    served: ASGIApp = _WithHead(WithPage(behind_keys) if pod.places.page else behind_keys)
    if origins := pod.config.allowed_origins:
        served = CORSMiddleware(served, origins, ["GET", "POST"], ["*"], expose_headers=EXPOSED_HEADERS)
    return _WithRequestId(OneLength(_SayingClose(served, lambda: pod.leaving)))


def probe_app(pod: Pod, asked: Callable[[], Sequence[str]]) -> ASGIApp:
    """Return the application of port 8002: probes and metrics.

    Args:
        pod: this one.
        asked: returns the names of the requests under way.
    """
    app = _app(error_response)

    @app.get("/livez")
    async def livez() -> Response:
        if pod.engine.stalled:
            return PlainTextResponse("no step of the engine has ended for too long, and work is pending\n", 503)
        return PlainTextResponse("ok\n")

    @app.get("/readyz")
    async def readyz() -> Response:
        return PlainTextResponse("ok\n") if pod.ready else PlainTextResponse("not ready\n", 503)

    @app.get("/startupz")
    async def startupz() -> Response:
        return PlainTextResponse("ok\n") if pod.base.ended else PlainTextResponse("the base model is not loaded\n", 503)

    @app.get("/metrics")
    async def metrics() -> Response:
        text = pod.metrics.render(pod.board.reports(), pod.load(asked()))
        return Response(text, media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def control_app(pod: Pod) -> ASGIApp:
    """Return the application of port 8001: the operator's."""
    app = _app(fault_response)
    app.include_router(control_router(pod))
    return _WithRequestId(OneLength(app))


def _app(response: Callable[[GraftError], Response]) -> FastAPI:
    """Return an application whose every fault has the shape that `response` gives it."""
    app = FastAPI(openapi_url=None)

    async def on_fault(_: Request, error: Exception) -> Response:
        assert isinstance(error, GraftError)
        return response(error)

    async def on_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        what = f"{request.method} {request.url.path} is not a route of this server"
        answer = response(GraftError(ErrorCode.INVALID_REQUEST, what, hint="look up the path and the method"))
        answer.status_code = error.status_code
        if allowed := (error.headers or {}).get("Allow"):
            answer.headers["Allow"] = "GET, HEAD" if allowed == "GET" else allowed
        return answer

    async def on_gone(_: Request, error: Exception) -> Response:
        return Response(status_code=CLIENT_GONE)

    async def on_bug(_: Request, error: Exception) -> Response:
        return response(GraftError(ErrorCode.INTERNAL, "a fault of Graft itself; its log says more"))

    app.add_exception_handler(GraftError, on_fault)
    app.add_exception_handler(HTTPException, on_http)
    app.add_exception_handler(ClientGoneError, on_gone)
    app.add_exception_handler(Exception, on_bug)
    return app


class _WithHead:
    """Answers HEAD as GET; the server leaves the body out."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._app({**scope, "method": method}, receive, send)


class _WithRequestId:
    """Gives each request an id: the caller's, where it has a plain one, and sends it back."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = REQUEST_ID_HEADER.lower().encode()
        given = next((value.decode("latin-1") for key, value in scope.get("headers", ()) if key == name), "")
        current = given if _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        token = request_id.set(current)
        try:
            await self._app(scope, receive, _sending(send, current))
        finally:
            request_id.reset(token)


class _SayingClose:
    """Ends each connection with its next answer once this pod is leaving: the client's next request reaches another."""

    def __init__(self, app: ASGIApp, leaving: Callable[[], bool]) -> None:
        self._app, self._leaving = app, leaving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def sending(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start" and self._leaving():
                message["headers"] = [*message["headers"], (b"connection", b"close")]
            await send(message)

        await self._app(scope, receive, sending)


def _sending(send: Send, current: str) -> Callable[[MutableMapping[str, Any]], Awaitable[None]]:
    async def sending(message: MutableMapping[str, Any]) -> None:
        if message["type"] == "http.response.start":
            message["headers"] = [*message["headers"], (REQUEST_ID_HEADER.lower().encode(), current.encode())]
        await send(message)

    return sending
