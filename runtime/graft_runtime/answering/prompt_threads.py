"""Threads that make tokens of prompts, so that an adapter's own files keep nobody waiting but those who ask for it."""

from __future__ import annotations

from collections.abc import Callable
from typing import ParamSpec, TypeVar

from graft_runtime.threads import Threads, Turns
from graft_runtime.tokenizing.text_formats import TextFormat

SHORT_THREADS = 2
LONG_CHARACTERS = 64 << 10
"""A text that has more takes a fraction of a second, and one of a body's size takes seconds."""
STRANGERS_THREADS = 32
"""Each for another tokenizer or chat template than the base's."""

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class PromptThreads:
    """Threads for what reads as the base does, one for its long texts, and one at a time for each other way to read."""

    def __init__(self) -> None:
        self._short, self._long = Threads(SHORT_THREADS, "tokenize"), Threads(1, "long-texts")
        self._strangers = Turns(STRANGERS_THREADS, "strangers")

    async def run(
        self,
        text_format: TextFormat,
        base: TextFormat,
        characters: int,
        call: Callable[Arguments, Result],
        *arguments: Arguments.args,
        **options: Arguments.kwargs,
    ) -> Result:
        """Return what a blocking call returns.

        Args:
            text_format: that the call reads or writes text by.
            base: the base model's.
            characters: that the call reads.
            call: to be made.
        """
        files = _files(text_format)
        if files == _files(base):
            threads = self._short if characters <= LONG_CHARACTERS else self._long
            return await threads.run(call, *arguments, **options)
        return await self._strangers.run(files, call, *arguments, **options)


def _files(text_format: TextFormat) -> tuple[str, str | None]:
    return text_format.tokenizer.identity, text_format.defaults.chat_template
