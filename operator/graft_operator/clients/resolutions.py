"""Asks pods for the digests of sources, in the background, and remembers the answers until they are written down."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from graft_runtime.backoff import Backoff
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.control import Resolution, ResolveRequest

from graft_operator.clients.runtime_client import (
    PodAddress,
    RuntimeClient,
    RuntimeRefusedError,
    RuntimeUnreachableError,
)
from graft_operator.decisions.observed import ResolvedSource
from graft_operator.keys import PoolKey

logger = logging.getLogger(__name__)

UNREACHABLE_RETRY_SECONDS = 1.0
MOST_ASKED = 3
"""Pods that are asked the same at the same time: the next one is, where the last has not answered for a while."""
RETRIES = Backoff(first_seconds=4.0, longest_seconds=60.0)


@dataclass
class _Question:
    answer: ResolvedSource | None = None
    repeats: int = 0
    """Answers in a row that brought no other digest."""
    task: asyncio.Task[None] | None = None


class Resolutions:
    """The open questions and the answers of all pools.

    Args:
        mark: called with the key of the pool that an answer is for.
        clock: Unix seconds.
        again_seconds: between two questions to a pod that has no answer yet.
        patience_seconds: until another pod is asked as well.
    """

    def __init__(
        self,
        client: RuntimeClient,
        mark: Callable[[PoolKey], None],
        clock: Callable[[], float] = time.time,
        again_seconds: float = 0.2,
        patience_seconds: float = 2.0,
    ) -> None:
        self._client = client
        self._mark = mark
        self._clock = clock
        self._again_seconds = again_seconds
        self._patience_seconds = patience_seconds
        self._questions: dict[PoolKey, dict[Source, _Question]] = defaultdict(dict)

    def known(self, key: PoolKey) -> Mapping[Source, ResolvedSource]:
        """Return the answers so far."""
        questions = self._questions.get(key, {})
        return {source: question.answer for source, question in questions.items() if question.answer is not None}

    def ask(self, key: PoolKey, source: Source, pods: Sequence[PodAddress]) -> None:
        """Have the first of `pods` that can find out the digest of `source`, unless pods are at it already."""
        question = self._questions[key].setdefault(source, _Question())
        if question.task is None or question.task.done():
            question.task = asyncio.create_task(
                self._resolve(key, source, question, pods), name=f"resolve {source.uri}"
            )

    def keep(self, key: PoolKey, sources: Collection[Source]) -> None:
        """Forget the answers about all other sources."""
        questions = self._questions.get(key, {})
        for source in [source for source in questions if source not in sources]:
            _cancel(questions.pop(source))
        if not questions:
            self._questions.pop(key, None)

    async def close(self) -> None:
        """Stop asking; wait until all tasks have ended."""
        tasks = [
            question.task for questions in self._questions.values() for question in questions.values() if question.task
        ]
        for key in list(self._questions):
            self.keep(key, ())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _resolve(self, key: PoolKey, source: Source, question: _Question, pods: Sequence[PodAddress]) -> None:
        asked_at = self._clock()
        try:
            answer = await self._first_answer(source, pods[:MOST_ASKED])
        except (RuntimeUnreachableError, RuntimeRefusedError) as error:
            # No word about the source: what was known of it stays, and it is asked again soon.
            logger.info("no pod of %s could be asked about %s: %s", key, source.uri, error)
            before = question.answer or ResolvedSource()
            question.answer = replace(before, retry_at=self._clock() + UNREACHABLE_RETRY_SECONDS)
        else:
            known = question.answer.digest if question.answer is not None else None
            is_news = answer.digest is not None and answer.digest != known
            question.repeats = 1 if is_news else question.repeats + 1
            retry_at = self._clock() + RETRIES.seconds(question.repeats)
            question.answer = ResolvedSource(answer.digest, answer.revision, answer.fault, retry_at, asked_at)
        self._mark(key)

    async def _first_answer(self, source: Source, pods: Sequence[PodAddress]) -> Resolution:
        """Ask one pod after the other, each without waiting for the last one longer than patience allows.

        Raises:
            RuntimeUnreachableError, RuntimeRefusedError: none has answered; what became of the last.
        """
        left = list(pods)
        asked: set[asyncio.Task[Resolution]] = set()
        try:
            while True:
                if left:
                    asked.add(asyncio.create_task(self._answer(source, left.pop(0))))
                patience = self._patience_seconds if left else None
                done, asked = await asyncio.wait(asked, timeout=patience, return_when=asyncio.FIRST_COMPLETED)
                for task in done:
                    if task.exception() is None or not (left or asked):
                        return task.result()
        finally:
            for task in asked:
                task.cancel()
            await asyncio.gather(*asked, return_exceptions=True)

    async def _answer(self, source: Source, pod: PodAddress) -> Resolution:
        while True:
            answer = await self._client.resolve(pod, ResolveRequest(source=source))
            if answer.digest is not None or answer.fault is not None:
                return answer
            await asyncio.sleep(self._again_seconds)


def _cancel(question: _Question) -> None:
    if question.task is not None:
        question.task.cancel()
