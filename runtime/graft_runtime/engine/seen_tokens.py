"""Which tokens a sequence has, for penalties: kept from step to step, since a prompt may be long."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


class SeenTokens:
    """The tokens of one sequence, each once, and how often the answer has it.

    Args:
        before: what the model sees before the answer.
        most: tokens of the answer.
    """

    def __init__(self, before: Sequence[int], most: int) -> None:
        first = dict.fromkeys(before)
        self._at = {token: at for at, token in enumerate(first)}
        self._tokens = np.zeros(len(first) + most)
        self._tokens[: len(first)] = list(first)
        self._counts = np.zeros(len(first) + most)
        self._taken = 0

    def catch_up(self, answer: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Take note of the tokens that the answer has by now. Returns the tokens, and their counts in the answer."""
        for token in answer[self._taken :]:
            at = self._at.setdefault(token, len(self._at))
            self._tokens[at] = token
            self._counts[at] += 1
        self._taken = len(answer)
        return self._tokens[: len(self._at)], self._counts[: len(self._at)]
