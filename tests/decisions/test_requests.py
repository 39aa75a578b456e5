"""Whatever a body holds, the answer is a request or one fault that names its field."""

from __future__ import annotations

import json
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.http.bodies import parse_body
from graft_runtime.http.routes.chat import ChatBody
from graft_runtime.http.routes.completions import CompletionBody
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FIELDS = [*CompletionBody.model_fields, *ChatBody.model_fields, "n", "tools", "user", "logit_bias", "stranger"]
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5)
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.sampled_from(["role", "content", "type", "text", "name", "x"]), inner, max_size=3)
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
        assert all(request.asked().stops)


def parsed(body: Any, model: type[Any]) -> tuple[Any, GraftError | None]:
    try:
        return parse_body(json.dumps(body).encode(), model), None
    except GraftError as error:
        return None, error


@settings(deadline=None)
@given(st.binary(max_size=40))
def test_any_bytes_are_a_request_or_a_fault(body: bytes) -> None:
    with pytest.raises(GraftError):
        parse_body(body, CompletionBody)


@pytest.mark.parametrize("field", ["model", "prompt", "stranger"])
def test_half_of_a_character_is_a_fault(field: str) -> None:
    body = json.dumps({"model": "a", "prompt": "b", field: "\ud83d"}).encode()
    with pytest.raises(GraftError, match="surrogate") as caught:
        parse_body(body, CompletionBody)
    caught.value.message.encode()
    whole = json.dumps({"model": "a", "prompt": "😀"}).encode()
    assert b"\\ud83d" in whole
    assert parse_body(whole, CompletionBody).prompt == "😀"


def test_the_alias_of_max_tokens_goes_first() -> None:
    body = {"model": "a", "messages": [{"role": "user", "content": "x"}], "max_tokens": 5, "max_completion_tokens": 7}
    assert parse_body(json.dumps(body).encode(), ChatBody).token_limit == 7


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
    request = parse_body(json.dumps(body).encode(), ChatBody)
    assert [message.rendered() for message in request.messages] == [
        {"role": "system", "content": "Be brief."},
        {"role": "assistant", "content": "4"},
    ]
