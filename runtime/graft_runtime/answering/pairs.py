"""Pairs of texts whose relevance to each other is asked for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import chain
from operator import mul

from graft_runtime.tokenizing.pairs import encode_pair
from graft_runtime.tokenizing.text_formats import TextFormat

Row = tuple[list[int], list[int] | None]
"""Token ids, and their types where there are any."""


@dataclass(frozen=True)
class Pairs:
    """Pairs of texts."""

    pairs: Sequence[tuple[str, str]]
    field: str
    """Of the request, which holds the second texts."""

    @cached_property
    def texts(self) -> list[str]:
        """Return each text once."""
        return [*dict.fromkeys(chain.from_iterable(self.pairs))]

    def together(self, text_format: TextFormat, model: str, context: int) -> list[Row]:
        """Return a row of each pair. Blocking. Raises GraftError: ContextTooLong, Corrupt."""
        return [encode_pair(text_format.tokenizer, pair, context, self.field) for pair in self.pairs]


def cosine(first: Sequence[float], second: Sequence[float]) -> float:
    """Return the cosine of the angle between two vectors; 0 where one has no direction."""
    lengths = math.hypot(*first) * math.hypot(*second)
    return sum(map(mul, first, second)) / lengths if lengths else 0.0
