"""POST /v1/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictInt, StrictStr

from graft_runtime.answering.answers import Piece
from graft_runtime.answering.asked import Texts
from graft_runtime.http.generations import Generations
from graft_runtime.http.routes.text import TextBody, Words

MAX_PROMPTS = 128
TokenId = Annotated[StrictInt, Field(ge=0)]


class CompletionBody(TextBody):
    """The request."""

    prompt: (
        StrictStr
        | Annotated[list[StrictStr], Field(max_length=MAX_PROMPTS)]
        | list[TokenId]
        | Annotated[list[list[TokenId]], Field(max_length=MAX_PROMPTS)]
    )

    expected: ClassVar[Mapping[str, str]] = {
        **TextBody.expected,
        "prompt": "a string, a list of strings, a list of token ids, or a list of such lists (at most 128 prompts)",
    }

    @property
    def prompts(self) -> Texts:
        """Return the prompts: none where `prompt` is an empty list."""
        if isinstance(self.prompt, str):
            return Texts([self.prompt])
        if self.prompt and isinstance(self.prompt[0], int):
            return Texts([[token for token in self.prompt if isinstance(token, int)]])
        return Texts([prompt for prompt in self.prompt if not isinstance(prompt, int)])


class CompletionWords(Words):
    """The answer."""

    id_prefix = "cmpl-"
    whole_object = chunk_object = "text_completion"

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        return {"index": index, "text": text, "logprobs": None, "finish_reason": finish}

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        return self.choice(piece.index, piece.text, piece.finish)


def completions_router(generations: Generations) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/completions")
    async def completions(request: Request) -> Response:
        return await generations.answer(request, "completions", CompletionBody, CompletionWords)

    return router
