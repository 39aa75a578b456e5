"""The pieces of an answer with several choices."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
from graft_runtime.answering.answers import Choice, Generation
from graft_runtime.tokenizing.pieces import Detokenizer, StopStrings


class Answer:
    """Says one token, and ends with it.

    Args:
        finish: why it ends.
    """

    def __init__(self, finish: str = "stop") -> None:
        self._finish = finish

    async def next(self) -> tuple[list[int], str | None]:
        return [0], self._finish

    def cancel(self) -> None:
        """There is nothing to stop."""


def _choice(index: int, text: Detokenizer, finish: str = "stop") -> Choice:
    answer: Any = Answer(finish)
    return Choice(index, answer, text, StopStrings(()))


@pytest.mark.parametrize(("finish", "tokens"), [("stop", 2), ("length", 1)])
async def test_the_token_that_ends_an_answer_is_counted_and_not_shown(finish: str, tokens: int) -> None:
    choice = _choice(0, Detokenizer(lambda ids: "a" * len(ids)), finish)
    assert "".join([piece.text async for piece in choice.pieces()]) == "a"
    assert choice.tokens == tokens


async def test_whatever_goes_wrong_in_one_choice_ends_the_request() -> None:
    def fails(_: Any) -> str:
        raise ZeroDivisionError("in a decoder")

    choices = [_choice(0, Detokenizer(lambda ids: "a" * len(ids))), _choice(1, Detokenizer(fails))]
    generation = Generation("base", None, 1, choices, ExitStack())
    async with asyncio.timeout(10):
        with pytest.raises(ZeroDivisionError):
            [piece async for piece in generation.pieces()]
