"""How models write calls of tools, by family: a registry, found by the chat template; and grammars that force calls."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from graft_runtime.answering.calls import Calls, CallStyle
from graft_runtime.tokenizing.grammars import AnswerForm


@dataclass(frozen=True)
class Family:
    """Models that write calls alike."""

    name: str
    template: re.Pattern[str]
    """What chat templates of the family hold, and no other's."""
    style: CallStyle


FAMILIES = (
    Family(
        "mistral with names",
        re.compile(re.escape("[TOOL_CALLS]") + ".*" + re.escape("[ARGS]"), re.DOTALL),
        CallStyle(("[TOOL_CALLS]",), name_end="[ARGS]", special=True, id_characters=9),
    ),
    Family(
        "mistral", re.compile(re.escape("[TOOL_CALLS]")), CallStyle(("[TOOL_CALLS]",), special=True, id_characters=9)
    ),
    Family("hermes", re.compile(r"<tool_call>(?!\s*\\n<function=)"), CallStyle(("<tool_call>",), "</tool_call>")),
    Family(
        "llama 3",
        re.compile(r"<\|python_tag\|>|<\|start_header_id\|>ipython"),
        CallStyle(("<|python_tag|>",), arguments=("parameters", "arguments"), bare=True, special=True),
    ),
)
"""The first one that a template holds is the model's."""
_ANY = CallStyle((), bare=True)
"""Of a model of no family, whose calls are forced."""


def style_of(template: str) -> CallStyle | None:
    """Return how the model of a chat template writes calls; None: it is of no family that is known."""
    return next((family.style for family in FAMILIES if family.template.search(template)), None)


@dataclass(frozen=True)
class Tools:
    """The tools of a request."""

    shown: Sequence[dict[str, Any]]
    """As OpenAI has them; the chat template shows them."""
    callable: Sequence[Mapping[str, Any]]
    """Those that the answer may call: all, or the one that is named."""
    forced: bool = False
    """The answer is calls and nothing else."""
    most: int | None = None
    """Calls of one answer; None: as many as the model makes."""
    named: bool = False
    """The request names the one that is called."""

    def reader(self, template: str) -> Calls | None:
        """Return what reads the calls of an answer; None: the model's family is not known."""
        style = style_of(template)
        if self.forced:
            return Calls(style or _ANY, inside=True, most=self.most, named=self.named)
        return Calls(style, most=self.most) if style is not None else None

    def form(self, template: str) -> AnswerForm:
        """Return the form of an answer that is calls, as the model writes them."""
        style = style_of(template) or _ANY
        schema = {
            "anyOf": [_schema(tool, style) for tool in self.callable],
            "x-guidance": {"whitespace_flexible": False},
        }
        call, between, around = "object", ", ", ('"[" ', ' "]"')
        if style.end and not style.special:
            call, between, around = (
                _quoted(f"{style.begin[0]}\n") + " object " + _quoted(f"\n{style.end}"),
                "\n",
                ("", ""),
            )
        several = f"{around[0]}call ({_quoted(between)} call)*{around[1]}"
        lines = [f"start: {'call' if self.most == 1 else several}", f"call: {call}"]
        lines.append(f"object: %json {json.dumps(schema, ensure_ascii=False)}")
        return AnswerForm("lark", "\n".join(lines), "tools")


def _quoted(text: str) -> str:
    return json.dumps(text)


def _schema(tool: Mapping[str, Any], style: CallStyle) -> dict[str, Any]:
    """Return the schema of a call of one tool."""
    function, key = tool["function"], style.arguments[0]
    parameters = function.get("parameters") or {"type": "object"}
    return {
        "type": "object",
        "properties": {"name": {"const": function["name"]}, key: parameters},
        "required": ["name", key],
        "additionalProperties": False,
    }
