"""Calls of tools in answers as families of models write them: whole, cut anywhere, and broken."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graft_runtime.answering.call_styles import FAMILIES, style_of
from graft_runtime.answering.calls import Calls, CallStyle
from graft_runtime.http.routes.tools import call_deltas, whole_calls

TEMPLATES = {
    "mistral with names": "{{- '[TOOL_CALLS]' + call.name + '[ARGS]' + call.arguments }}",
    "mistral": "{{- '[TOOL_CALLS] [' }}",
    "hermes": '{{- \'<tool_call>\\n{"name": "\' }}',
    "llama 3": "{{- '<|start_header_id|>ipython<|end_header_id|>' }}",
}
STYLES = {family.name: family.style for family in FAMILIES}
ANSWERS: dict[str, tuple[str, str, list[tuple[str, Any]]]] = {
    "one": ("hermes", '<tool_call>\n{"name": "f", "arguments": {"a": "x"}}\n</tool_call>', [("f", {"a": "x"})]),
    "two": (
        "hermes",
        'Let me see.\n<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>\n'
        '<tool_call>{"name":"g","arguments":{"s":"</tool_call>}\\"","n":[1,{"b":{}}]}}</tool_call>',
        [("f", {}), ("g", {"s": '</tool_call>}"', "n": [1, {"b": {}}]})],
    ),
    "another order": ("hermes", '<tool_call>{"arguments": {"a": 1}, "name": "f"}</tool_call>', [("f", {"a": 1})]),
    "arguments as text": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": 1}"}</tool_call>',
        [("f", {"a": 1})],
    ),
    "llama": ("llama 3", '{"name": "f", "parameters": {"größe": "ü\\n"}}', [("f", {"größe": "ü\n"})]),
    "llama with its mark": (
        "llama 3",
        '<|python_tag|>{"name": "f", "parameters": {}}; {"name": "g", "parameters": {"a": null}}',
        [("f", {}), ("g", {"a": None})],
    ),
    "mistral": (
        "mistral",
        '[TOOL_CALLS] [{"name": "f", "arguments": {"a": 1}}, {"name": "g", "arguments": {}}]',
        [("f", {"a": 1}), ("g", {})],
    ),
    "mistral's names": (
        "mistral with names",
        'Well. [TOOL_CALLS]f[ARGS]{"a": "[ARGS]"}[TOOL_CALLS]g[ARGS]{}',
        [("f", {"a": "[ARGS]"}), ("g", {})],
    ),
}
TEXTS = {"two": "Let me see.", "mistral's names": "Well."}


def read(calls: Calls, pieces: list[str]) -> tuple[str, list[dict[str, Any]]]:
    """Return the text and the calls that the pieces of an answer come to."""
    said = [calls.push(piece) for piece in pieces] + [calls.finish()]
    return "".join(one.text for one in said), whole_calls([part for one in said for part in one.calls])


def named(found: list[dict[str, Any]]) -> list[tuple[str, Any]]:
    return [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in found]


@pytest.mark.parametrize("family", TEMPLATES)
def test_a_family_is_found_by_its_template(family: str) -> None:
    assert style_of(TEMPLATES[family]) == STYLES[family]
    assert style_of("{{ messages[0].content }}") is None


@pytest.mark.parametrize("name", ANSWERS)
def test_calls_are_read_wherever_their_text_is_cut(name: str) -> None:
    family, answer, wanted = ANSWERS[name]
    for cut in range(len(answer) + 1):
        text, calls = read(Calls(STYLES[family]), [answer[:cut], answer[cut:]])
        assert (text, named(calls)) == (TEXTS.get(name, ""), wanted), cut
    text, calls = read(Calls(STYLES[family]), [*answer])
    assert (text, named(calls)) == (TEXTS.get(name, ""), wanted)
    assert len({call["id"] for call in calls}) == len(calls)


def test_arguments_are_told_as_they_come() -> None:
    calls = Calls(STYLES["hermes"])
    deltas = [
        call_deltas(calls.push(piece).calls)
        for piece in ['<tool_call>{"name": "f", "arguments": ', '{"a": ', '"xy"', "}", "}\n</tool_call>"]
    ]
    assert [[delta["function"]["arguments"] for delta in each] for each in deltas] == [
        [],
        ['{"a": '],
        ['"xy"'],
        ["}"],
        [],
    ]
    first, *others = [delta for each in deltas for delta in each]
    assert (first["index"], first["type"], first["function"]["name"]) == (0, "function", "f")
    assert all(delta.keys() == {"index", "function"} for delta in others)


@pytest.mark.parametrize(
    ("family", "answer"),
    [
        ("hermes", "No <tool and <b> but text.\n\n{}"),
        ("hermes", " \n"),
        ("llama 3", '{"answer": 42}'),
        ("llama 3", '{"name": "f", '),
        ("llama 3", 'Use {"name": "f", "parameters": {}} so.'),
        ("mistral", "[TOOL_CALL"),
    ],
)
def test_what_is_no_call_is_text(family: str, answer: str) -> None:
    for pieces in ([answer], [*answer]):
        assert read(Calls(STYLES[family]), pieces) == (answer, [])


def test_a_call_that_is_cut_keeps_its_name_and_what_came_of_its_arguments() -> None:
    _, (call,) = read(Calls(STYLES["hermes"]), ['<tool_call>{"name": "f", "arguments": {"a": "x'])
    assert call["function"] == {"name": "f", "arguments": '{"a": "x'}


def test_no_more_calls_are_told_than_asked_for() -> None:
    _, answer, (first, _) = ANSWERS["two"]
    assert named(read(Calls(STYLES["hermes"], most=1), [*answer])[1]) == [first]


@pytest.mark.parametrize("style", [*STYLES.values(), CallStyle(())])
def test_an_answer_that_is_forced_begins_within_a_call(style: CallStyle) -> None:
    answer = '[{"name": "f", "arguments": {"a": 1}}, {"name": "g", "parameters": {}}]'
    assert named(read(Calls(style, inside=True), [*answer])[1]) == [("f", {"a": 1}), ("g", {})]
