"""The pieces of an answer with several choices."""

from __future__ import annotations

import asyncio
from contextlib import ExitStack
from typing import Any

import pytest
from graft_runtime.answering.answers import Choice, Generation
from graft_runtime.tokenizing.pieces import Detokenizer, StopStrings


class Answer:
    """Ends at once with the letter `a`."""

    async def next(self) -> tuple[list[int], str | None]:
        return [0], "stop"

    def cancel(self) -> None:
        """There is nothing to stop."""


def _choice(index: int, text: Detokenizer) -> Choice:
    answer: Any = Answer()
    return Choice(index, answer, text, StopStrings(()))


async def test_whatever_goes_wrong_in_one_choice_ends_the_request() -> None:
    def fails(_: Any) -> str:
        raise ZeroDivisionError("in a decoder")

    choices = [_choice(0, Detokenizer(lambda ids: "a" * len(ids))), _choice(1, Detokenizer(fails))]
    generation = Generation("base", None, 1, choices, ExitStack())
    async with asyncio.timeout(10):
        with pytest.raises(ZeroDivisionError):
            [piece async for piece in generation.pieces()]
