"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictStr

from graft_runtime.answering.answers import Piece
from graft_runtime.answering.asked import Conversation
from graft_runtime.http.bodies import invalid
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import MESSAGE_FIELDS, PART_FIELDS, check_neutral
from graft_runtime.http.routes.text import Count, TextBody, Words


class TextPart(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: Literal["text"]
    text: StrictStr


class RefusalPart(BaseModel):
    """A part of an assistant's message: what it said instead of an answer."""

    model_config = ConfigDict(extra="allow", frozen=True)
    type: Literal["refusal"]
    text: StrictStr = Field(validation_alias="refusal")


class ChatMessage(BaseModel):
    """One message of a conversation."""

    model_config = ConfigDict(extra="allow", frozen=True)
    role: Literal["system", "developer", "user", "assistant"]
    content: StrictStr | Annotated[list[TextPart | RefusalPart], Field(max_length=1024, fail_fast=True)] | None = None
    """None of an assistant that said nothing, or refused."""
    refusal: StrictStr | None = None
    name: StrictStr | None = Field(default=None, max_length=256)
    reasoning_content: StrictStr | None = None
    """What an assistant thought before; the chat template shows it, or does not."""
    reasoning: StrictStr | None = None
    """The same, by its newer name."""

    def rendered(self) -> dict[str, Any]:
        """Return it as chat templates know it."""
        said = self.content if self.content is not None else self.refusal or ""
        content = said if isinstance(said, str) else "".join(part.text for part in said)
        role = "system" if self.role == "developer" else self.role
        more = {"name": self.name, "reasoning_content": self.reasoning_content or self.reasoning}
        return {"role": role, "content": content} | {key: text for key, text in more.items() if text is not None}

    def check(self, where: str) -> None:
        """Check what single fields don't show. Raises GraftError: InvalidRequest, UnsupportedParameter."""
        if self.content is None and self.role != "assistant":
            raise invalid(f"{where}.content", f"`{where}.content` is missing", hint=f"send `{where}.content`")
        refused = {"refusal": self.refusal} if self.content is not None else {}
        check_neutral(refused | (self.model_extra or {}), MESSAGE_FIELDS, where)
        for at, part in enumerate(self.content if isinstance(self.content, list) else ()):
            check_neutral(part.model_extra, PART_FIELDS, f"{where}.content[{at}]")


class ChatBody(TextBody):
    """The request."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: Count | None = None

    expected: ClassVar[Mapping[str, str]] = {
        **TextBody.expected,
        "messages": 'a list of {"role": "system" | "user" | "assistant", "content": text}',
        "max_completion_tokens": TextBody.expected["max_tokens"],
    }

    @property
    def prompts(self) -> Conversation:
        """Return the conversation so far."""
        return Conversation([message.rendered() for message in self.messages])

    @property
    def token_limit(self) -> int | None:
        """Return `max_completion_tokens`, or else `max_tokens`, which is the older name of the same."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        super().check()
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")


class ChatWords(Words):
    """The answer."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, index: int, text: str, finish: str | None) -> dict[str, Any]:
        message = {"role": "assistant", "content": text, "refusal": None}
        return {"index": index, "message": message, "logprobs": None, "finish_reason": finish}

    def opening(self) -> dict[str, Any]:
        return self._envelope(self.chunk_object, [_delta({"role": "assistant", "content": ""}, None)])

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        return _delta({"content": piece.text} if piece.text else {}, piece.finish)


def _delta(delta: Mapping[str, str], finish: str | None) -> dict[str, Any]:
    return {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}


def chat_router(generations: Generations) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await generations.answer(request, "chat", ChatBody, ChatWords)

    return router
