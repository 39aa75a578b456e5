"""POST /v1/responses: OpenAI's newer shape of a conversation, of which nothing is kept."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal

from fastapi import APIRouter, Request, Response
from pydantic import Field, StrictBool, StrictStr

from graft_runtime.answering.answers import Generation, Piece
from graft_runtime.answering.asked import Conversation, TextRequest
from graft_runtime.answering.call_styles import Tools
from graft_runtime.answering.callers import Caller
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.bodies import LARGEST_INTEGER, Whole, invalid
from graft_runtime.http.generations import Generations
from graft_runtime.http.neutral import ANY, Neutral, check_neutral
from graft_runtime.http.routes.response_input import FlatName, FlatTool, Items, TextOptions, check_items, messages_of
from graft_runtime.http.routes.response_output import Event, OutputItems
from graft_runtime.http.routes.text import AskedBody, Number, Words
from graft_runtime.http.routes.tools import MAX_TOOLS, tools_of
from graft_runtime.http.streaming import event
from graft_runtime.tokenizing.grammars import AnswerForm
from graft_runtime.tokenizing.rendering import TemplateOptions

_NOT_KEPT = ("previous_response_id", "conversation", "prompt")
_NEUTRAL: Neutral = {
    "background": (False,),
    "include": ([],),
    "max_tool_calls": (),
    "prompt_cache_key": (ANY,),
    "prompt_cache_options": (ANY,),
    "prompt_cache_retention": (ANY,),
    "reasoning": ({},),
    "safety_identifier": (ANY,),
    "service_tier": (ANY,),
    "store": (ANY,),
    "stream_options": (ANY,),
    "top_logprobs": (0,),
    "truncation": ("disabled",),
    "user": (ANY,),
}
"""https://platform.openai.com/docs/api-reference/responses/create: the defaults there."""
Choice = Literal["none", "auto", "required"] | FlatName


class ResponsesBody(AskedBody):
    """The request."""

    model: StrictStr | None = Field(default=None, max_length=256)
    input: StrictStr | Items
    instructions: StrictStr | None = None
    max_output_tokens: Annotated[Whole, Field(ge=1, le=LARGEST_INTEGER)] | None = None
    temperature: Annotated[Number, Field(ge=0, le=2)] | None = None
    top_p: Annotated[Number, Field(gt=0, le=1)] | None = None
    text: TextOptions | None = None
    tools: Annotated[list[FlatTool], Field(max_length=MAX_TOOLS, fail_fast=True)] | None = None
    tool_choice: Choice | None = None
    parallel_tool_calls: StrictBool | None = None
    metadata: Annotated[dict[StrictStr, StrictStr], Field(max_length=16)] | None = None

    expected: ClassVar[Mapping[str, str]] = {
        "model": "the name of an adapter or of the base model",
        "input": "a string or a list of items",
        "input[]": "a message, or an item of the type function_call, function_call_output or reasoning",
        "max_output_tokens": f"a whole number from 1 to {LARGEST_INTEGER}",
        "temperature": "a number from 0 (greedy) to 2",
        "top_p": "a number over 0 and up to 1",
        "tool_choice": 'none, auto, required, or {"type": "function", "name": a tool}',
    }

    def check(self) -> None:
        extras = dict(self.model_extra or {})
        for name in _NOT_KEPT:
            if extras.pop(name, None) is not None:
                raise GraftError(
                    ErrorCode.UNSUPPORTED_PARAMETER,
                    f"`{name}` is given, and nothing is kept of earlier requests",
                    hint="send the whole conversation as `input`, with the items of earlier answers",
                    field=name,
                )
        check_neutral(extras, _NEUTRAL)
        if not isinstance(self.input, str):
            check_items(self.input)
        if self.text is not None:
            self.text.check()
        if self.called is not None and self.form is not None:
            what = "`text.format` and `tools` are both given, and an answer in that form can't call"
            raise invalid("text.format", what, hint='leave one of them out, or send `tool_choice: "none"`')

    @property
    def called(self) -> Tools | None:
        """Return what the answer may call."""
        choice = self.tool_choice.nested() if isinstance(self.tool_choice, FlatName) else self.tool_choice
        nested = [tool.nested() for tool in self.tools or ()]
        return tools_of(nested, choice, parallel=self.parallel_tool_calls is not False)

    @property
    def form(self) -> AnswerForm | None:
        """Return the form that is asked for."""
        asked = self.text.format if self.text is not None else None
        if asked is None or asked.type == "text":
            return None
        schema = asked.schema_ if asked.type == "json_schema" else {"type": "object"}
        return AnswerForm("json_schema", json.dumps(schema, ensure_ascii=False), "text.format")

    def asked(self, caller: Caller) -> TextRequest:
        called = self.called
        options = TemplateOptions(tools=[*called.shown] if called is not None else [])
        return TextRequest(
            Conversation(messages_of(self.instructions, self.input), options, "input"),
            caller,
            model=self.model,
            max_tokens=self.max_output_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            form=self.form,
            tools=called,
        )

    def echoed(self) -> dict[str, Any]:
        """Return what an answer repeats of its request."""
        told = {"text", "tools", "tool_choice"}
        written = self.model_dump(mode="json", by_alias=True, exclude_none=True, include=told)
        plain = ("instructions", "max_output_tokens", "temperature", "top_p")
        return {field: getattr(self, field) for field in plain} | {
            "metadata": self.metadata or {},
            "parallel_tool_calls": self.parallel_tool_calls is not False,
            "previous_response_id": None,
            "text": {"format": {"type": "text"}} | written.get("text", {}),
            "tool_choice": written.get("tool_choice", "auto"),
            "tools": [{"parameters": None, "strict": None} | tool for tool in written.get("tools", [])],
            "truncation": "disabled",
        }


class ResponseWords(Words):
    """The answer."""

    last = b""

    def __init__(self, generation: Generation, asked: ResponsesBody) -> None:
        self._generation, self._echoed = generation, asked.echoed()
        self._id, self._created = f"resp_{uuid.uuid4().hex}", int(time.time())
        self._output = OutputItems()
        self._sent = 0
        """Events."""
        self._finish: str | None = None
        """Why the answer has ended."""

    def whole(self, answers: Sequence[Piece]) -> dict[str, Any]:
        (answer,) = answers
        self.chunks(answer)
        self._output.close(self._status)
        return self._response(self._status)

    def openings(self) -> list[Event]:
        begun = self._response("in_progress")
        return self._numbered({"type": f"response.{kind}", "response": begun} for kind in ("created", "in_progress"))

    def chunks(self, piece: Piece) -> list[Event]:
        self._finish = piece.finish
        return self._numbered(self._output.push(piece))

    def closings(self) -> list[Event]:
        status = self._status
        closed = self._output.close(status)
        return self._numbered([*closed, {"type": f"response.{status}", "response": self._response(status)}])

    def failure(self, error: GraftError) -> Event:
        self._output.close("incomplete")
        fault = {"code": "server_error", "message": error.message}
        failed = {"type": "response.failed", "response": self._response("failed") | {"error": fault}}
        return self._numbered([failed])[0]

    def encoded(self, value: Mapping[str, Any]) -> bytes:
        return event(value, value["type"])

    @property
    def _status(self) -> str:
        return "incomplete" if self._finish == "length" else "completed"

    def _numbered(self, events: Iterable[Event]) -> list[Event]:
        numbered = [each | {"sequence_number": at} for at, each in enumerate(events, self._sent)]
        self._sent += len(numbered)
        return numbered

    def _response(self, status: str) -> dict[str, Any]:
        ended = status != "in_progress"
        return self._echoed | {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "completed_at": int(time.time()) if status == "completed" else None,
            "model": self._generation.model,
            "status": status,
            "error": None,
            "incomplete_details": {"reason": "max_output_tokens"} if status == "incomplete" else None,
            "output": self._output.items if ended else [],
            "usage": self._usage() if ended else None,
        }

    def _usage(self) -> dict[str, Any]:
        generation = self._generation
        prompt, generated = generation.prompt_tokens, generation.generated_tokens
        return {
            "input_tokens": prompt,
            "input_tokens_details": {"cached_tokens": generation.known_tokens, "cache_write_tokens": 0},
            "output_tokens": generated,
            "output_tokens_details": {"reasoning_tokens": sum(choice.thoughts for choice in generation.choices)},
            "total_tokens": prompt + generated,
        }


def responses_router(generations: Generations) -> APIRouter:
    """Return the route."""
    router = APIRouter()

    @router.post("/v1/responses")
    async def responses(request: Request) -> Response:
        return await generations.answer(request, "responses", ResponsesBody, ResponseWords)

    return router
