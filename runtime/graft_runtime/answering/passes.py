"""From a checked request to what a model that makes no text says of each of its texts, in one pass each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Protocol

from graft_runtime.answering.asked import TextRequest
from graft_runtime.answering.generation import Generator
from graft_runtime.answering.limits import check_count, check_ids, check_task
from graft_runtime.contract.tasks import Task
from graft_runtime.messages import Encode, Encoded
from graft_runtime.pod.base_life import LoadedBase


class EncodeText(Protocol):
    """Hands a text to the engine."""

    def __call__(self, make: Callable[[str], Encode]) -> Coroutine[Any, Any, Encoded]:
        """Return what the model says of the text that `make` makes of the request's id."""


@dataclass(frozen=True)
class Passed:
    """What a model said of the texts of one request."""

    model: str
    digest: str | None
    """Of the adapter; None: the base model."""
    base: LoadedBase
    outputs: list[Encoded]
    """Of each text, in order."""
    prompt_tokens: int
    known_tokens = generated_tokens = 0


class Passes:
    """Takes requests through a model that makes no text.

    Args:
        generator: finds what is to answer, and holds it.
        encode: the engine's.
    """

    def __init__(self, generator: Generator, encode: EncodeText) -> None:
        self._generator, self._encode = generator, encode

    async def run(self, request: TextRequest, task: Task, *, pooled: bool = False) -> Passed:
        """Return what the model that a request names says of its texts.

        Args:
            request: with its texts.
            task: that the base must be loaded for.
            pooled: one vector is made of the hidden states of each text.

        Raises:
            GraftError: InvalidRequest where the base is loaded for another task; else as `Generator.start`.
        """
        async with self._generator.ready(request, generates=False) as ready:
            check_task(ready.base, ready.model, task)
            target, field = ready.target, request.prompts.field
            pooling = ready.base.pooling
            context = min(ready.context, pooling.max_tokens or ready.context) if pooling else ready.context
            encode = partial(request.prompts.encode, target.text_format, ready.model, context)
            characters = request.prompts.characters
            texts = await self._generator.threads.run(target.text_format, ready.base.text_format, characters, encode)
            for ids in texts:
                check_count(len(ids), context, field)
                check_ids(ids, target.vocabulary_size, field)
            makes = [partial(Encode, ids=ids, adapters=target.adapters, pooled=pooled) for ids in texts]
            outputs = await all_of([self._encode(make) for make in makes])
            return Passed(ready.model, ready.digest, ready.base, outputs, sum(map(len, texts)))


async def all_of(passes: Sequence[Coroutine[Any, Any, Encoded]]) -> list[Encoded]:
    """Return what came of each. The first that fails ends all, with its fault."""
    tasks = [asyncio.ensure_future(one) for one in passes]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
