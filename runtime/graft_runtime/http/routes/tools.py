"""Tools in the bodies and answers of chat completions, as OpenAI has them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictStr

from graft_runtime.answering.call_styles import Tools
from graft_runtime.answering.calls import CallPart
from graft_runtime.http.bodies import invalid, shown

MAX_TOOLS = 128
Name = Annotated[StrictStr, Field(pattern=r"^[a-zA-Z0-9_.:-]{1,64}$")]


class Function(BaseModel):
    """What a tool does, and what it takes."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name
    description: StrictStr | None = None
    parameters: dict[str, Any] | None = None
    """A JSON schema."""
    strict: StrictBool | None = None
    """Arguments of calls that are forced always have the form of the schema."""


class Tool(BaseModel):
    """A tool that an answer may call."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["function"]
    function: Function


class FunctionName(BaseModel):
    """A function by its name."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    name: Name


class NamedTool(BaseModel):
    """The tool that an answer must call."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    type: Literal["function"]
    function: FunctionName


Choice = Literal["none", "auto", "required"] | NamedTool


class CalledFunction(BaseModel):
    """What an assistant called before."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    name: StrictStr
    arguments: StrictStr


class ToolCall(BaseModel):
    """A call in an assistant's message."""

    model_config = ConfigDict(extra="ignore", frozen=True)
    id: StrictStr | None = None
    type: Literal["function"] = "function"
    function: CalledFunction

    def rendered(self) -> dict[str, Any]:
        """Return it as chat templates know it: arguments that are an object are one."""
        try:
            arguments = json.loads(self.function.arguments)
        except ValueError:
            arguments = None
        function = {
            "name": self.function.name,
            "arguments": arguments if isinstance(arguments, dict) else self.function.arguments,
        }
        return {"type": "function", "function": function} | ({} if self.id is None else {"id": self.id})


def tools_of(tools: Sequence[Tool], choice: Choice | None, *, parallel: bool) -> Tools | None:
    """Return what an answer may call; None: nothing. Raises GraftError: InvalidRequest.

    Args:
        tools: of the request.
        choice: `tool_choice`.
        parallel: whether one answer may make several calls.
    """
    names = [tool.function.name for tool in tools]
    for at, name in enumerate(names):
        if name in names[:at]:
            field = f"tools[{at}].function.name"
            raise invalid(field, f"`{field}` is {shown(name)} once more", hint="name each tool once")
    forced = choice == "required" or isinstance(choice, NamedTool)
    if not tools and forced:
        raise invalid("tool_choice", "`tool_choice` asks for a call, and there are no `tools`", hint="send `tools`")
    if not tools or choice == "none":
        return None
    described = [tool.model_dump(exclude_none=True) for tool in tools]
    if not isinstance(choice, NamedTool):
        return Tools(described, described, forced, None if parallel else 1)
    if choice.function.name not in names:
        field = "tool_choice.function.name"
        raise invalid(
            field, f"`{field}` is {shown(choice.function.name)}, which is no tool", hint="name one of `tools`"
        )
    return Tools(described, [described[names.index(choice.function.name)]], forced, 1, named=True)


def whole_calls(parts: Sequence[CallPart]) -> list[dict[str, Any]]:
    """Return the calls of an answer that is not streamed."""
    calls: dict[int, dict[str, Any]] = {}
    for part in parts:
        if part.name is not None:
            calls[part.index] = {"id": part.id, "type": "function", "function": {"name": part.name, "arguments": ""}}
        calls[part.index]["function"]["arguments"] += part.arguments
    return list(calls.values())


def call_deltas(parts: Sequence[CallPart]) -> list[dict[str, Any]]:
    """Return what a chunk tells of calls: of each first its id and name, then more of its arguments.

    A call is there once in a chunk, whatever came of it: clients put chunks together by the places in this list.
    """
    deltas: dict[int, dict[str, Any]] = {}
    for part in parts:
        delta = deltas.setdefault(part.index, {"index": part.index, "function": {"arguments": ""}})
        if part.name is not None:
            delta |= {"id": part.id, "type": "function"}
            delta["function"]["name"] = part.name
        delta["function"]["arguments"] += part.arguments
    return list(deltas.values())
