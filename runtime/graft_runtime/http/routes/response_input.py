"""What /v1/responses is asked with: a conversation as OpenAI's list of items, and the tools and form of the answer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, StrictBool, StrictStr, Tag

from graft_runtime.http.bodies import invalid
from graft_runtime.http.neutral import ANY, PART_FIELDS, Neutral, check_neutral
from graft_runtime.http.routes.tools import CalledFunction, Function, FunctionName, Name, NamedTool, Tool, ToolCall

_OF_ANSWERS: dict[str, tuple[Any, ...]] = {"id": (ANY,), "status": (ANY,), "phase": (ANY,), "type": (ANY,)}
"""What an item has that was part of an answer."""
_OF_PARTS: Neutral = {**PART_FIELDS, "logprobs": (ANY,)}


class _Item(BaseModel):
    model_config = ConfigDict(extra="allow", frozen=True)


class InputText(_Item):
    """A part of a message, or of what a tool has put out."""

    type: Literal["input_text", "output_text", "text"]
    text: StrictStr


class InputRefusal(_Item):
    """A part of an assistant's message: what it said instead of an answer."""

    type: Literal["refusal"]
    text: StrictStr = Field(validation_alias="refusal")


Parts = Annotated[list[InputText | InputRefusal], Field(max_length=1024, fail_fast=True)]
Said = StrictStr | Parts


class InputMessage(_Item):
    """A message of the conversation."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Said


class InputCall(_Item):
    """A call that the assistant made before."""

    type: Literal["function_call"]
    call_id: Annotated[StrictStr, Field(max_length=256)]
    name: StrictStr
    arguments: StrictStr


class InputCallOutput(_Item):
    """What a tool has put out."""

    type: Literal["function_call_output"]
    call_id: Annotated[StrictStr, Field(max_length=256)]
    output: Said


class InputThought(_Item):
    """A text that the assistant thought before."""

    type: Literal["reasoning_text"]
    text: StrictStr


class InputReasoning(_Item):
    """What the assistant thought before its next item."""

    type: Literal["reasoning"]
    content: Annotated[list[InputThought], Field(max_length=1024, fail_fast=True)] | None = None


def _kind(item: Any) -> str:
    told = item.get("type") if isinstance(item, dict) else getattr(item, "type", None)
    return str(told or "message")


Item = Annotated[
    Annotated[InputMessage, Tag("message")]
    | Annotated[InputCall, Tag("function_call")]
    | Annotated[InputCallOutput, Tag("function_call_output")]
    | Annotated[InputReasoning, Tag("reasoning")],
    Discriminator(_kind),
]
Items = Annotated[list[Item], Field(min_length=1, max_length=4096, fail_fast=True)]


def check_items(items: Sequence[Any]) -> None:
    """Check what items have beside their own fields. Raises GraftError: InvalidRequest, UnsupportedParameter."""
    for at, item in enumerate(items):
        more: dict[str, tuple[Any, ...]] = {"summary": ([],)} if isinstance(item, InputReasoning) else {}
        check_neutral(item.model_extra, _OF_ANSWERS | more, f"input[{at}]")
        for field in ("content", "output"):
            parts = getattr(item, field, None)
            for part_at, part in enumerate(parts if isinstance(parts, list) else ()):
                check_neutral(part.model_extra, _OF_PARTS, f"input[{at}].{field}[{part_at}]")


def messages_of(instructions: str | None, items: str | list[Any]) -> list[dict[str, Any]]:
    """Return a conversation as chat templates know it: calls and thoughts are parts of an assistant's message."""
    messages: list[dict[str, Any]] = []
    if instructions:
        messages.append({"role": "system", "content": instructions})
    if isinstance(items, str):
        return [*messages, {"role": "user", "content": items}]
    thoughts = ""
    for item in items:
        if isinstance(item, InputReasoning):
            thoughts += "".join(thought.text for thought in item.content or ())
            continue
        thought = {"reasoning_content": thoughts} if thoughts else {}
        if isinstance(item, InputCall):
            called = ToolCall(id=item.call_id, function=CalledFunction(name=item.name, arguments=item.arguments))
            if thought or not messages or messages[-1]["role"] != "assistant":
                messages.append({"role": "assistant", "content": ""} | thought)
            messages[-1].setdefault("tool_calls", []).append(called.rendered())
        elif isinstance(item, InputCallOutput):
            messages.append({"role": "tool", "content": _text(item.output), "tool_call_id": item.call_id})
        else:
            role = "system" if item.role == "developer" else item.role
            messages.append({"role": role, "content": _text(item.content)} | (thought if role == "assistant" else {}))
        thoughts = ""
    return messages


def _text(said: str | Sequence[InputText | InputRefusal]) -> str:
    return said if isinstance(said, str) else "".join(part.text for part in said)


class FlatTool(BaseModel):
    """A tool that an answer may call."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["function"]
    name: Name
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    strict: StrictBool | None = None

    def nested(self) -> Tool:
        """Return it as chat completions have it."""
        function = Function(
            name=self.name, description=self.description, parameters=self.parameters, strict=self.strict
        )
        return Tool(type="function", function=function)


class FlatName(BaseModel):
    """The tool that an answer must call."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["function"]
    name: Name

    def nested(self) -> NamedTool:
        """Return it as chat completions have it."""
        return NamedTool(type="function", function=FunctionName(name=self.name))


class Format(BaseModel):
    """The form of the answer."""

    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)
    type: Literal["text", "json_object", "json_schema"]
    name: StrictStr | None = Field(default=None, max_length=256)
    description: StrictStr | None = None
    schema_: dict[str, Any] | None = Field(default=None, alias="schema")
    strict: StrictBool | None = None
    """Answers always have the form of the schema."""


class TextOptions(BaseModel):
    """How the text of an answer looks."""

    model_config = ConfigDict(extra="allow", frozen=True)
    format: Format = Format(type="text")

    def check(self) -> None:
        """Check what single fields don't show. Raises GraftError: InvalidRequest, UnsupportedParameter."""
        check_neutral(self.model_extra, {"verbosity": ("medium",)}, "text")
        if self.format.type == "json_schema" and self.format.schema_ is None:
            raise invalid("text.format.schema", "`text.format.schema` is missing", "send `text.format.schema`")
