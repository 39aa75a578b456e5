"""POST /tokenize and /detokenize, in vLLM's shapes."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Request, Response
from fastapi.responses import JSONResponse
from pydantic import Field, StrictBool, StrictStr

from graft_runtime.answering.generation import Generator
from graft_runtime.http.bodies import MAX_VALUES, Body
from graft_runtime.http.callers import caller_of
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import check_neutral
from graft_runtime.http.routes.chat import ChatBody
from graft_runtime.http.routes.completions import CompletionBody
from graft_runtime.http.routes.text import Token


class TokenizeText(CompletionBody):
    """A prompt, as completions take it."""

    return_token_strs: StrictBool | None = None


class TokenizeChat(ChatBody):
    """A conversation, as chat completions take it."""

    return_token_strs: StrictBool | None = None


class DetokenizeBody(Body):
    """Token ids."""

    model: StrictStr | None = Field(default=None, max_length=256)
    tokens: Annotated[list[Token], Field(max_length=MAX_VALUES, fail_fast=True)]

    def check(self) -> None:
        check_neutral(self.model_extra, {})


def tokens_router(generations: Generations, generator: Generator) -> APIRouter:
    """Return the routes."""
    router = APIRouter()

    @router.post("/tokenize")
    async def tokenize(request: Request) -> Response:
        body = await generations.read(request, _text_or_chat)
        made = await generator.tokenize(body.asked(caller_of(request)), spelled=bool(body.return_token_strs))
        answer = {"count": len(made.ids), "max_model_len": made.context, "tokens": made.ids, "token_strs": made.texts}
        return JSONResponse(answer)

    @router.post("/detokenize")
    async def detokenize(request: Request) -> Response:
        body = await generations.read(request, DetokenizeBody.of)
        return JSONResponse({"prompt": await generator.detokenize(body.model, body.tokens, caller_of(request))})

    return router


def _text_or_chat(value: dict[str, Any]) -> TokenizeText | TokenizeChat:
    return TokenizeText.of(value) if value.get("messages") is None else TokenizeChat.of(value)
