"""Has versions of adapters answer their checks, as they would answer a client."""

from __future__ import annotations

from graft_runtime.answering.answers import put_together
from graft_runtime.answering.asked import Conversation, Prompts, TextRequest, Texts
from graft_runtime.answering.callers import ANYBODY
from graft_runtime.answering.generation import Generator
from graft_runtime.contract.answer_check import AnswerCheck


class Checker:
    """Asks versions of adapters.

    Args:
        generator: whose names stand for the versions that are checked.
    """

    def __init__(self, generator: Generator) -> None:
        self._generator = generator

    async def __call__(self, name: str, check: AnswerCheck) -> str:
        """Return the answer of the version that a name stands for.

        Raises:
            GraftError: as `Generator.start` and `Generation.pieces`.
        """
        request = TextRequest(_prompts(check), ANYBODY, model=name, max_tokens=check.max_tokens, temperature=0.0)
        generation = await self._generator.start(request)
        try:
            return put_together([piece async for piece in generation.pieces()]).text
        finally:
            generation.close()


def _prompts(check: AnswerCheck) -> Prompts:
    if check.message is not None:
        return Conversation([{"role": "user", "content": check.message}])
    return Texts([check.prompt or ""])
