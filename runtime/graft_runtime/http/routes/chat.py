"""POST /v1/chat/completions."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from graft_runtime.answering.answers import Piece, ToldToken
from graft_runtime.answering.asked import Conversation, TextRequest
from graft_runtime.answering.call_styles import Tools
from graft_runtime.answering.callers import Caller
from graft_runtime.http.bodies import Whole, invalid
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import MESSAGE_FIELDS, PART_FIELDS, check_neutral
from graft_runtime.http.routes.text import MAX_LOGPROBS, ChoiceWords, Count, Number, TextBody
from graft_runtime.http.routes.tools import MAX_TOOLS, Choice, Tool, ToolCall, call_deltas, tools_of, whole_calls
from graft_runtime.tokenizing.pieces import REPLACEMENT
from graft_runtime.tokenizing.rendering import TemplateOptions

_RESERVED = frozenset(
    {
        "conversations",
        "messages",
        "chat_template",
        "add_generation_prompt",
        "continue_final_message",
        "tools",
        "documents",
        "return_assistant_tokens_mask",
    }
)
"""What a chat template is told by other fields, or not at all."""
TemplateValue = StrictBool | Number | Annotated[StrictStr, Field(max_length=256)] | None


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
    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: StrictStr | Annotated[list[TextPart | RefusalPart], Field(max_length=1024, fail_fast=True)] | None = None
    """None of an assistant that said nothing, called tools, or refused."""
    refusal: StrictStr | None = None
    name: StrictStr | None = Field(default=None, max_length=256)
    reasoning_content: StrictStr | None = None
    """What an assistant thought before; the chat template shows it, or does not."""
    reasoning: StrictStr | None = None
    """The same, by its newer name."""
    tool_calls: Annotated[list[ToolCall], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    """Of an assistant."""
    tool_call_id: StrictStr | None = Field(default=None, max_length=256)
    """Of the call that a tool answers."""

    def rendered(self) -> dict[str, Any]:
        """Return it as chat templates know it."""
        said = self.content if self.content is not None else self.refusal or ""
        content = said if isinstance(said, str) else "".join(part.text for part in said)
        role = "system" if self.role == "developer" else self.role
        more: dict[str, Any] = {"name": self.name, "reasoning_content": self.reasoning_content or self.reasoning}
        more |= {
            "tool_call_id": self.tool_call_id,
            "tool_calls": [call.rendered() for call in self.tool_calls or ()] or None,
        }
        return {"role": role, "content": content} | {key: value for key, value in more.items() if value is not None}

    def check(self, where: str) -> None:
        """Check what single fields don't show. Raises GraftError: InvalidRequest, UnsupportedParameter."""
        if self.content is None and self.role != "assistant":
            raise invalid(f"{where}.content", f"`{where}.content` is missing", hint=f"send `{where}.content`")
        if self.tool_calls and self.role != "assistant":
            what = f"`{where}.tool_calls` is given, and `{where}.role` is {self.role}"
            raise invalid(f"{where}.tool_calls", what, hint="only an assistant calls tools")
        refused = {"refusal": self.refusal} if self.content is not None else {}
        check_neutral(refused | (self.model_extra or {}), MESSAGE_FIELDS, where)
        for at, part in enumerate(self.content if isinstance(self.content, list) else ()):
            check_neutral(part.model_extra, PART_FIELDS, f"{where}.content[{at}]")


class ChatBody(TextBody):
    """The request."""

    messages: Annotated[list[ChatMessage], Field(min_length=1, max_length=4096, fail_fast=True)]
    max_completion_tokens: Count | None = None
    logprobs: StrictBool | None = None
    top_logprobs: Annotated[Whole, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_generation_prompt: StrictBool | None = None
    continue_final_message: StrictBool | None = None
    tools: Annotated[list[Tool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: StrictBool | None = None
    chat_template_kwargs: Annotated[dict[str, TemplateValue], Field(max_length=16)] | None = None

    expected: ClassVar[Mapping[str, str]] = {
        **TextBody.expected,
        "messages": 'a list of {"role": "system" | "user" | "assistant" | "tool", "content": text}',
        "tool_choice": 'none, auto, required, or {"type": "function", "function": {"name": a tool}}',
        "max_completion_tokens": TextBody.expected["max_tokens"],
    }

    @property
    def prompts(self) -> Conversation:
        """Return the conversation so far."""
        options = TemplateOptions(
            answer_begins=self.add_generation_prompt is not False and not self.continue_final_message,
            last_goes_on=bool(self.continue_final_message),
            values=self.chat_template_kwargs or {},
            tools=[*self.called.shown] if self.called is not None else [],
        )
        return Conversation([message.rendered() for message in self.messages], options)

    @property
    def called(self) -> Tools | None:
        """Return what the answer may call."""
        return tools_of(self.tools or (), self.tool_choice, parallel=self.parallel_tool_calls is not False)

    def asked(self, caller: Caller) -> TextRequest:
        return replace(super().asked(caller), tools=self.called)

    @property
    def told_logprobs(self) -> int | None:
        return self.top_logprobs or 0 if self.logprobs else None

    @property
    def token_limit(self) -> int | None:
        """Return `max_completion_tokens`, or else `max_tokens`, which is the older name of the same."""
        return self.max_completion_tokens if self.max_completion_tokens is not None else self.max_tokens

    def check(self) -> None:
        super().check()
        if self.top_logprobs and not self.logprobs:
            raise invalid(
                "top_logprobs", "`top_logprobs` is given without `logprobs: true`", hint="send both, or neither"
            )
        if self.continue_final_message and self.add_generation_prompt:
            what = "`continue_final_message` and `add_generation_prompt` are both true, and one can be"
            raise invalid("continue_final_message", what, hint="leave one of them out")
        if self.called is not None and self.form is not None:
            what = f"`{self.form.field}` and `tools` are both given, and an answer in that form can't call"
            raise invalid(self.form.field, what, hint='leave one of them out, or send `tool_choice: "none"`')
        for name in self.chat_template_kwargs or {}:
            if name in _RESERVED:
                field = f"chat_template_kwargs.{name}"
                raise invalid(field, f"`{field}` is a field of its own", hint="leave it out")
        for index, message in enumerate(self.messages):
            message.check(f"messages[{index}]")


class ChatWords(ChoiceWords):
    """The answer."""

    id_prefix = "chatcmpl-"
    whole_object = "chat.completion"
    chunk_object = "chat.completion.chunk"

    def choice(self, answer: Piece) -> dict[str, Any]:
        message: dict[str, Any] = {"role": "assistant", "content": answer.text, "refusal": None}
        if answer.reasoning:
            message["reasoning_content"] = answer.reasoning
        if answer.calls:
            message |= {"content": answer.text or None, "tool_calls": whole_calls(answer.calls)}
        return self._choice(answer, {"message": message})

    def openings(self) -> list[dict[str, Any]]:
        delta = {"delta": {"role": "assistant", "content": ""}}
        firsts = [Piece(choice.index, "", None) for choice in self._generation.choices]
        return [self._envelope(self.chunk_object, [self._choice(first, delta)]) for first in firsts]

    def chunk_choice(self, piece: Piece) -> dict[str, Any]:
        delta: dict[str, Any] = {"content": piece.text} if piece.text else {}
        if piece.reasoning:
            delta["reasoning_content"] = piece.reasoning
        calls = {"tool_calls": call_deltas(piece.calls)} if piece.calls else {}
        return self._choice(piece, {"delta": delta | calls})

    @staticmethod
    def _choice(piece: Piece, said: Mapping[str, Any]) -> dict[str, Any]:
        told = [_logprob(token.text, token.logprob) | {"top_logprobs": _top(token)} for token in piece.tokens]
        logprobs = {"content": told, "refusal": None} if told else None
        return {"index": piece.index, **said, "logprobs": logprobs, "finish_reason": piece.finish}


def _top(token: ToldToken) -> list[dict[str, Any]]:
    return [_logprob(text, logprob) for text, logprob in token.top]


def _logprob(text: str, logprob: float | None) -> dict[str, Any]:
    """Return what is told of a token; a part of a character has no bytes that its text would tell."""
    return {"token": text, "logprob": logprob, "bytes": None if REPLACEMENT in text else list(text.encode())}


def chat_router(generations: Generations) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/chat/completions")
    async def chat_completions(request: Request) -> Response:
        return await generations.answer(request, "chat", ChatBody, ChatWords)

    return router
