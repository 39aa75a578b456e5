"""Whatever a body holds, the answer is a request or one fault that names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graft_runtime.answering.callers import ANYBODY
from graft_runtime.errors import GraftError
from graft_runtime.http.bodies import parse_body
from graft_runtime.http.neutral import ANY, BODY_FIELDS
from graft_runtime.http.routes.chat import ChatBody
from graft_runtime.http.routes.completions import CompletionBody
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FIELDS = [*CompletionBody.model_fields, *ChatBody.model_fields, "tools", "user", "response_format", "stranger"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name", "id", "x"]), inner, max_size=3)
    ),
    max_leaves=8,
)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.sampled_from(FIELDS), VALUES), st.sampled_from([CompletionBody, ChatBody]))
def test_any_json_is_a_request_or_a_fault(body: dict[str, Any], model: type[Any]) -> None:
    request, fault = parsed(body, model)
    if fault is not None:
        assert fault.code in {"InvalidRequest", "UnsupportedParameter"}
        assert fault.field is None or fault.field.split("[")[0].split(".")[0] in FIELDS
        assert fault.hint
    else:
        assert request.token_limit is None or request.token_limit >= 1
        assert all(request.asked(ANYBODY).stops)


def parsed(body: Any, model: type[Any]) -> tuple[Any, GraftError | None]:
    try:
        return parse_body(json.dumps(body).encode(), model.of), None
    except GraftError as error:
        return None, error


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_fault(body: bytes) -> None:
    with pytest.raises(GraftError):
        parse_body(body, CompletionBody.of)


@pytest.mark.parametrize("field", ["model", "prompt", "stranger"])
def test_half_of_a_character_is_a_fault(field: str) -> None:
    body = json.dumps({"model": "a", "prompt": "b", field: "\ud83d"}).encode()
    with pytest.raises(GraftError, match="surrogate") as caught:
        parse_body(body, CompletionBody.of)
    caught.value.message.encode()
    whole = json.dumps({"model": "a", "prompt": "😀"}).encode()
    assert b"\\ud83d" in whole
    assert parse_body(whole, CompletionBody.of).prompt == "😀"


def test_the_alias_of_max_tokens_goes_first() -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "max_completion_tokens": 7}
    assert parse_body(json.dumps(body).encode(), ChatBody.of).token_limit == 7


COMPLETION: dict[str, Any] = {"model": "a", "prompt": "b"}
SAID: dict[str, Any] = {"role": "user", "content": "c"}
CHAT: dict[str, Any] = {"model": "a", "messages": [SAID]}
CALL = {"name": "f", "arguments": '{"a": 1}'}
ROUTES: list[tuple[type[Any], dict[str, Any]]] = [(CompletionBody, COMPLETION), (ChatBody, CHAT)]


def fault_of(body: Any, model: type[Any]) -> GraftError | None:
    return parsed(body, model)[1]


def test_a_schema_of_objects_in_objects_is_taken_and_one_without_end_is_not() -> None:
    for levels, code in ((18, None), (40, "InvalidRequest")):
        schema: dict[str, Any] = {"type": "integer"}
        for _ in range(levels):
            schema = {"type": "object", "properties": {"a": schema}}
        body = json.dumps(COMPLETION | {"guided_json": schema}).encode()
        try:
            parse_body(body, CompletionBody.of)
            assert code is None
        except GraftError as error:
            assert error.code == code  # noqa: PT017


@pytest.mark.parametrize(("model", "body"), ROUTES)
def test_null_asks_for_nothing_whatever_its_name(model: type[Any], body: dict[str, Any]) -> None:
    declared = model.model_fields.keys() - body.keys()
    assert fault_of(body | dict.fromkeys([*declared, *BODY_FIELDS, "stranger"]), model) is None


@pytest.mark.parametrize(("model", "body"), ROUTES)
@pytest.mark.parametrize("name", BODY_FIELDS)
def test_a_neutral_value_passes_and_another_does_not(model: type[Any], body: dict[str, Any], name: str) -> None:
    if name in model.model_fields:
        pytest.skip("a parameter of this route")
    neutral = BODY_FIELDS[name]
    passing = [value for value in neutral if value is not ANY] or ["whatever"] * len(neutral)
    assert all(fault_of(body | {name: value}, model) is None for value in passing)
    fault = fault_of(body | {name: ["it", "asks", "for", {"something": 7}]}, model)
    if ANY in neutral:
        assert fault is None
    else:
        assert fault is not None
        assert (fault.code, fault.field) == ("UnsupportedParameter", name)


def test_what_no_table_has_is_refused_with_its_name() -> None:
    fault = fault_of(COMPLETION | {"temprature": 1}, CompletionBody)
    assert fault is not None
    assert (fault.code, fault.field) == ("InvalidRequest", "temprature")


@pytest.mark.parametrize(
    ("name", "value", "whole"),
    [
        ("max_tokens", 8.0, 8),
        ("seed", -3.0, -3),
        ("top_k", 5.0, 5),
        ("max_tokens", 8.5, None),
        ("max_tokens", True, None),
    ],
)
def test_a_whole_number_may_be_written_with_a_point(name: str, value: Any, whole: int | None) -> None:
    body, fault = parsed(COMPLETION | {name: value}, CompletionBody)
    assert (fault is None) == (whole is not None)
    assert body is None or (getattr(body, name), type(getattr(body, name))) == (whole, int)


@pytest.mark.parametrize(
    ("message", "rendered"),
    [
        ({"role": "assistant", "content": None, "refusal": None}, {"content": ""}),
        ({"role": "assistant"}, {"content": ""}),
        ({"role": "assistant", "content": None, "refusal": "No."}, {"content": "No."}),
        ({"role": "assistant", "content": [{"type": "refusal", "refusal": "No."}]}, {"content": "No."}),
        ({"role": "user", "content": []}, {"content": ""}),
        ({"role": "user", "content": "a", "id": "msg_1", "annotations": [{"type": "url_citation"}]}, {"content": "a"}),
        ({"role": "assistant", "content": "a", "reasoning_content": "b"}, {"content": "a", "reasoning_content": "b"}),
        ({"role": "assistant", "content": "a", "reasoning": "b"}, {"content": "a", "reasoning_content": "b"}),
        ({"role": "tool", "content": "4", "tool_call_id": "1"}, {"content": "4", "tool_call_id": "1"}),
        (
            {"role": "assistant", "tool_calls": [{"id": "1", "type": "function", "function": CALL}]},
            {
                "content": "",
                "tool_calls": [{"id": "1", "type": "function", "function": CALL | {"arguments": {"a": 1}}}],
            },
        ),
        (
            {"role": "assistant", "tool_calls": [{"function": CALL | {"arguments": "[1"}}]},
            {"content": "", "tool_calls": [{"type": "function", "function": CALL | {"arguments": "[1"}}]},
        ),
        (
            {"role": "assistant", "content": "a", "provider_specific_fields": {"x": 1}, "prefix": False},
            {"content": "a"},
        ),
        (
            {"role": "user", "content": [{"type": "text", "text": "a", "cache_control": {"type": "ephemeral"}}]},
            {"content": "a"},
        ),
    ],
)
def test_what_messages_hold_beside_their_text(message: dict[str, Any], rendered: dict[str, Any]) -> None:
    body, fault = parsed({"model": "a", "messages": [message]}, ChatBody)
    assert fault is None
    assert [one.rendered() for one in body.messages] == [{"role": message["role"], **rendered}]


@pytest.mark.parametrize(
    ("message", "field"),
    [
        ({"role": "user", "content": None}, "content"),
        ({"role": "assistant", "content": "a", "refusal": "No."}, "refusal"),
        ({"role": "assistant", "content": "a", "prefix": True}, "prefix"),
        ({"role": "assistant", "content": "a", "tool_calls": [{"id": "1"}]}, "tool_calls[0].function"),
        ({"role": "user", "content": "a", "tool_calls": [{"function": CALL}]}, "tool_calls"),
        ({"role": "user", "content": [{"type": "text", "text": "a", "mood": 1}]}, "content[0].mood"),
    ],
)
def test_what_messages_ask_for_and_get_not_is_refused(message: dict[str, Any], field: str) -> None:
    fault = fault_of({"model": "a", "messages": [message]}, ChatBody)
    assert fault is not None
    assert fault.field == f"messages[0].{field}"


def test_what_the_official_client_sends_back_of_an_answer_is_taken() -> None:
    """Messages of earlier answers come with their empty fields."""
    answer: dict[str, Any] = {
        "role": "assistant",
        "content": "4",
        "refusal": None,
        "annotations": [],
        "audio": None,
        "tool_calls": None,
    }
    body = {"model": "a", "messages": [{"role": "developer", "content": "Be brief."}, answer]}
    request = parse_body(json.dumps(body).encode(), ChatBody.of)
    assert [message.rendered() for message in request.messages] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "4"},
    ]
