"""Where prompts become tokens: an adapter's own files keep nobody waiting but those who ask for it."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

import pytest
from graft_runtime.answering.asked import Conversation, Prompts, Texts
from graft_runtime.answering.prompt_threads import LONG_CHARACTERS, SHORT_THREADS, PromptThreads
from graft_runtime.tokenizing.defaults import GenerationDefaults
from graft_runtime.tokenizing.rendering import TemplateOptions
from graft_runtime.tokenizing.text_formats import TextFormat


@dataclass
class Named:
    """Stands in for a tokenizer."""

    identity: str


def text_format(identity: str, template: str | None = None) -> TextFormat:
    return TextFormat(cast(Any, Named(identity)), GenerationDefaults(template))


BASE = text_format("base")


async def test_those_who_ask_for_a_file_that_takes_long_wait_for_it_alone() -> None:
    threads, go_on, begun = PromptThreads(), threading.Event(), list[str]()

    def long(name: str) -> Callable[[], str]:
        def work() -> str:
            begun.append(name)
            assert go_on.wait(60)
            return name

        return work

    slow = [text_format("base", "a template"), text_format("a tokenizer")]
    waiting = [
        asyncio.create_task(threads.run(one, BASE, 1, long(f"{at} {number}")))
        for at, one in enumerate(slow)
        for number in range(2 * SHORT_THREADS)
    ]
    try:
        assert await asyncio.wait_for(threads.run(BASE, BASE, 1, str, "base"), 30) == "base"
        assert await asyncio.wait_for(threads.run(text_format("other"), BASE, 1, str, "other"), 30) == "other"
        assert sorted(begun) == ["0 0", "1 0"], "one at a time of each"
    finally:
        go_on.set()
    assert len(await asyncio.gather(*waiting)) == 4 * SHORT_THREADS


async def test_long_texts_wait_for_each_other_and_short_ones_for_none_of_them() -> None:
    threads, go_on = PromptThreads(), threading.Event()
    waiting = [
        asyncio.create_task(threads.run(BASE, BASE, LONG_CHARACTERS + 1, go_on.wait, 60))
        for _ in range(2 * SHORT_THREADS)
    ]
    try:
        assert await asyncio.wait_for(threads.run(BASE, BASE, LONG_CHARACTERS, str, "short"), 30) == "short"
        assert not any(one.done() for one in waiting)
    finally:
        go_on.set()
    assert all(await asyncio.gather(*waiting))


@pytest.mark.parametrize(
    ("prompts", "characters"),
    [
        (Texts(["1234567", [1, 2, 3], "89"]), 9),
        (Conversation([{"role": "user", "content": "ab"}]), len("role user content ab".replace(" ", ""))),
        (Conversation([{"tool_calls": [{"a": {"b": 12}}]}], TemplateOptions(tools=[{"f": ["g"]}])), 14),
    ],
)
def test_all_text_of_a_request_counts(prompts: Prompts, characters: int) -> None:
    assert prompts.characters == characters
