"""What the demo shows of an HTTP answer, and its table."""

from __future__ import annotations

import pytest
from graft_local.demo_client import Answer, side_by_side
from graft_local.errors import LocalClusterError


def test_answers_stand_side_by_side() -> None:
    drawn = side_by_side({"base": "one two three four", "haiku": "first\nsecond"}, width=29)
    assert drawn.splitlines() == [
        "+-------------+-------------+",
        "| base        | haiku       |",
        "+-------------+-------------+",
        "| one two     | first       |",
        "| three four  | second      |",
        "+-------------+-------------+",
    ]


def test_wide_characters_keep_the_columns_straight() -> None:
    drawn = side_by_side({"emoji": "🌊 海 ☀️", "base": "sea"}, width=27)
    assert drawn.splitlines()[3] == "| 🌊 海 ☀️    | sea        |"


def test_a_completion_is_read_from_the_body() -> None:
    assert Answer(200, {"choices": [{"text": " Arr\n"}]}).text == "Arr"


def test_an_answer_that_is_no_completion_says_what_it_is() -> None:
    answer = Answer(404, {"error": {"message": "there is no model `x`"}})
    assert answer.error == "there is no model `x`"
    with pytest.raises(LocalClusterError, match=r"HTTP 404: .*there is no model `x`"):
        _ = answer.text


def test_an_error_without_a_message_is_shown_whole() -> None:
    assert Answer(502, {"detail": "x"}).error == "{'detail': 'x'}"
