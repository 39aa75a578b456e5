"""Thoughts and channels in answers, wherever their text is cut."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graft_runtime.answering.call_styles import style_of
from graft_runtime.answering.calls import Calls, Reader
from graft_runtime.answering.harmony import Harmony
from graft_runtime.answering.thinking import FAMILIES, Thinking, marks_of
from graft_runtime.http.routes.tools import whole_calls

QWEN = FAMILIES[0]
HERMES = style_of("<tool_call>")
CALL = '<tool_call>\n{"name": "f", "arguments": {"a": 1}}\n</tool_call>'
CHANNELS = (
    "<|channel|>analysis<|message|>So <b>.<|end|><|start|>assistant<|channel|>commentary<|message|>Wait.<|end|>"
    '<|start|>assistant<|channel|>commentary to=functions.f <|constrain|>json<|message|>{"a": "<|x|>"}<|call|>'
)
ANSWERS: dict[str, tuple[Any, str, tuple[str, str, list[tuple[str, Any]]]]] = {
    "thoughts": (
        lambda: Thinking(QWEN, None, begun=False),
        "\n<think>\nHm <b>\n</think>\n\nYes.",
        ("\nHm <b>\n", "Yes.", []),
    ),
    "begun": (lambda: Thinking(QWEN, None, begun=True), "Hm</think>Yes.", ("Hm", "Yes.", [])),
    "none": (lambda: Thinking(QWEN, None, begun=False), " <thin> air </think>", ("", " <thin> air </think>", [])),
    "no end": (lambda: Thinking(QWEN, None, begun=True), "Hm </thin", ("Hm </thin", "", [])),
    "only blanks": (lambda: Thinking(QWEN, None, begun=False), " \n", ("", " \n", [])),
    "a call": (
        lambda: Thinking(QWEN, Calls(HERMES), begun=False) if HERMES else None,
        f"<think>f?</think>\n\nSo:\n{CALL}",
        ("f?", "So:", [("f", {"a": 1})]),
    ),
    "channels": (Harmony, CHANNELS, ("So <b>.", "Wait.", [("f", {"a": "<|x|>"})])),
    "the last channel": (Harmony, "<|channel|>final<|message|>42 <|", ("", "42 <|", [])),
    "a recipient before its channel": (
        Harmony,
        "<|start|>assistant to=functions.g<|channel|>commentary json<|message|>{}<|call|>",
        ("", "", [("g", {})]),
    ),
    "one call of two": (
        lambda: Harmony(most=1),
        CHANNELS + CHANNELS,
        ("So <b>.So <b>.", "Wait.Wait.", [("f", {"a": "<|x|>"})]),
    ),
}


def read(reader: Reader, pieces: list[str]) -> tuple[str, str, list[tuple[str, Any]]]:
    said = [reader.push(piece) for piece in pieces] + [reader.finish()]
    calls = whole_calls([part for one in said for part in one.calls])
    named = [(call["function"]["name"], json.loads(call["function"]["arguments"])) for call in calls]
    return "".join(one.reasoning for one in said), "".join(one.text for one in said), named


@pytest.mark.parametrize("name", ANSWERS)
def test_an_answer_is_read_wherever_its_text_is_cut(name: str) -> None:
    make, answer, wanted = ANSWERS[name]
    for cut in range(len(answer) + 1):
        assert read(make(), [answer[:cut], answer[cut:]]) == wanted, cut
    assert read(make(), [*answer]) == wanted


def test_marks_are_found_by_the_template() -> None:
    assert marks_of("{{- '<think>\\n' + m.reasoning_content + '</think>' }}") == QWEN
    assert marks_of("{{ bos_token }}[THINK]...[/THINK]") == FAMILIES[1]
    assert marks_of("{{ messages[0].content }}") is None
