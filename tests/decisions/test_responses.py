"""What /v1/responses makes of items, and the items and events that it makes of an answer."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import pytest
from graft_runtime.answering.answers import Piece
from graft_runtime.answering.calls import CallPart
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.routes.response_input import messages_of
from graft_runtime.http.routes.response_output import OutputItems
from graft_runtime.http.routes.responses import ResponsesBody, ResponseWords
from openai.types.responses import ResponseFailedEvent

from tests.support.openai_types import departures

USER = {"role": "user", "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}]}
SAID = {"type": "message", "id": "msg_1", "role": "assistant", "status": "completed", "content": "c"}
THOUGHT = {"type": "reasoning", "id": "rs", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]}
CALL = {
    "type": "function_call",
    "call_id": "1",
    "name": "f",
    "arguments": '{"a": 1}',
    "id": "fc",
    "status": "completed",
}
OUTPUT = {"type": "function_call_output", "call_id": "1", "output": "3"}
RENDERED = {"id": "1", "type": "function", "function": {"name": "f", "arguments": {"a": 1}}}


@pytest.mark.parametrize(
    ("items", "messages"),
    [
        ("a", [{"role": "user", "content": "a"}]),
        ([USER], [{"role": "user", "content": "ab"}]),
        ([{"role": "developer", "content": "x"}], [{"role": "system", "content": "x"}]),
        ([THOUGHT, SAID], [{"role": "assistant", "content": "c", "reasoning_content": "hm"}]),
        ([THOUGHT, USER], [{"role": "user", "content": "ab"}]),
        (
            [SAID, CALL, CALL, OUTPUT],
            [
                {"role": "assistant", "content": "c", "tool_calls": [RENDERED, RENDERED]},
                {"role": "tool", "content": "3", "tool_call_id": "1"},
            ],
        ),
        (
            [THOUGHT, CALL],
            [{"role": "assistant", "content": "", "reasoning_content": "hm", "tool_calls": [RENDERED]}],
        ),
    ],
)
def test_items_become_messages(items: Any, messages: list[dict[str, Any]]) -> None:
    body = ResponsesBody.of({"input": items})
    assert messages_of(None, body.input) == messages
    assert messages_of("be", body.input) == [{"role": "system", "content": "be"}, *messages]


def test_an_item_ends_where_another_begins() -> None:
    output = OutputItems()
    pieces = [
        Piece(0, "", None, reasoning="h"),
        Piece(0, "", None, reasoning="m"),
        Piece(0, "a", None),
        Piece(0, "b", None),
        Piece(0, "", None, calls=[CallPart(0, "", id="1", name="f"), CallPart(0, "{")]),
        Piece(0, "", "stop", calls=[CallPart(0, "}"), CallPart(1, "", id="2", name="g"), CallPart(1, "{}")]),
    ]
    told = [event["type"].removeprefix("response.") for piece in pieces for event in output.push(piece)]
    told += [event["type"].removeprefix("response.") for event in output.close("completed")]
    begun, ended = ["output_item.added", "content_part.added"], ["content_part.done", "output_item.done"]
    arguments = "function_call_arguments"
    assert told == [
        *[*begun, "reasoning_text.delta", "reasoning_text.delta", "reasoning_text.done", *ended],
        *[*begun, "output_text.delta", "output_text.delta", "output_text.done", *ended],
        *["output_item.added", f"{arguments}.delta", f"{arguments}.delta", f"{arguments}.done", "output_item.done"],
        *["output_item.added", f"{arguments}.delta", f"{arguments}.done", "output_item.done"],
    ]
    thought, said, first, second = output.items
    assert (thought["content"][0]["text"], said["content"][0]["text"]) == ("hm", "ab")
    assert [(call["call_id"], call["name"], call["arguments"]) for call in (first, second)] == [
        ("1", "f", "{}"),
        ("2", "g", "{}"),
    ]
    assert {item["status"] for item in output.items} == {"completed"}
    assert output.close("completed") == []


def test_what_was_told_does_not_change_afterwards() -> None:
    output = OutputItems()
    first = output.push(Piece(0, "a", None))
    before = json.dumps(first)
    output.push(Piece(0, "b", None))
    output.close("incomplete")
    assert json.dumps(first) == before


def test_a_stream_that_fails_ends_with_what_there_was() -> None:
    generation: Any = SimpleNamespace(
        model="m", prompt_tokens=3, generated_tokens=1, known_tokens=0, choices=[SimpleNamespace(thoughts=0)]
    )
    words = ResponseWords(generation, ResponsesBody.of({"input": "x"}))
    sent = [*words.openings(), *words.chunks(Piece(0, "a", None))]
    failed = words.failure(GraftError(ErrorCode.INTERNAL, "the engine failed"))
    assert departures(ResponseFailedEvent, json.dumps(failed).encode()) == []
    assert failed["sequence_number"] == len(sent)
    response = failed["response"]
    assert (response["status"], response["output"][0]["status"]) == ("failed", "incomplete")
    assert "the engine failed" in response["error"]["message"]
