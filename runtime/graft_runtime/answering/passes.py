"""From a checked request to what a model that makes no text says of each of its texts, in one pass each."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol

from graft_runtime.answering.asked import Prompts, TextRequest, Texts
from graft_runtime.answering.callers import Caller
from graft_runtime.answering.generation import Generator, Ready
from graft_runtime.answering.limits import check_count, check_ids, check_task
from graft_runtime.answering.pairs import Pairs, Row, cosine
from graft_runtime.contract.tasks import Task
from graft_runtime.messages import Encode, Encoded
from graft_runtime.pod.base_life import LoadedBase
from graft_runtime.tokenizing.text_formats import TextFormat

RowsOf = Callable[[TextFormat, str, int], list[Row]]
"""Makes rows for a model of this name, each of at most so many tokens."""


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
    scores: Sequence[float] = ()
    """How well the texts of each pair go together, where that was asked for."""
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
            return await self._passed(request, ready, partial(_alone, request.prompts), pooled=pooled)

    async def score(self, pairs: Pairs, caller: Caller, model: str | None) -> Passed:
        """Return how well the texts of each pair go together.

        A base that classifies sees both at once; of one that embeds it is the cosine of their vectors.

        Args:
            pairs: of texts.
            caller: who asks.
            model: the name that is asked; None: the base.

        Raises:
            GraftError: InvalidRequest where the base is loaded for neither; else as `Generator.start`.
        """
        texts = Texts(pairs.texts, field=pairs.field)
        request = TextRequest(texts, caller, model=model)
        async with self._generator.ready(request, generates=False) as ready:
            check_task(ready.base, ready.model, Task.SEQ_CLS, Task.FEATURE_EXTRACTION)
            if ready.base.pooling is not None:
                passed = await self._passed(request, ready, partial(_alone, texts), pooled=True)
                vectors = dict(zip(pairs.texts, (output.values for output in passed.outputs), strict=True))
                return replace(passed, scores=[cosine(vectors[one], vectors[two]) for one, two in pairs.pairs])
            labels = ready.base.labels
            assert labels is not None, "the base classifies"
            passed = await self._passed(request, ready, pairs.together)
            scores = [labels.relevance(output.values, passed.model) for output in passed.outputs]
            return replace(passed, scores=scores)

    async def _passed(self, request: TextRequest, ready: Ready, rows_of: RowsOf, *, pooled: bool = False) -> Passed:
        """Have the engine pass the rows that tokenizing gives."""
        target, field, pooling = ready.target, request.prompts.field, ready.base.pooling
        context = min(ready.context, pooling.max_tokens or ready.context) if pooling else ready.context
        rows = await self._generator.threads.run(
            target.text_format,
            ready.base.text_format,
            request.prompts.characters,
            partial(rows_of, target.text_format, ready.model, context),
        )
        for ids, _ in rows:
            check_count(len(ids), context, field)
            check_ids(ids, target.vocabulary_size, field)
        makes = [partial(Encode, ids=ids, adapters=target.adapters, types=types, pooled=pooled) for ids, types in rows]
        outputs = await all_of([self._encode(make) for make in makes])
        return Passed(ready.model, ready.digest, ready.base, outputs, sum(len(ids) for ids, _ in rows))


def _alone(prompts: Prompts, text_format: TextFormat, model: str, context: int) -> list[Row]:
    """Return a row of each text."""
    return [(ids, None) for ids in prompts.encode(text_format, model, context)]


async def all_of(passes: Sequence[Coroutine[Any, Any, Encoded]]) -> list[Encoded]:
    """Return what came of each. The first that fails ends all, with its fault."""
    tasks = [asyncio.ensure_future(one) for one in passes]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
