"""Keys and values of the sequences that run, in pages of one pool: a page never moves, and its address is fixed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft_runtime.adapters.deltas import Prefix
from graft_runtime.runners.decoder.attention import LayerShape

PAGE = 256
"""Tokens of a page: what the flash kernel's table of pages asks for."""
SPARE = 0
"""The page of rows that stand for none: they write there, and nobody reads it."""


@dataclass(eq=False)
class PageList:
    """The place of one sequence: its pages, in the order of its tokens."""

    pool: Pages
    numbers: list[int]

    @property
    def capacity(self) -> int:
        """Return how many tokens the pages have room for."""
        return len(self.numbers) * PAGE

    def slots(self, start: int, end: int) -> list[int]:
        """Return where in the pool the tokens `start` … `end` lie."""
        return [self.numbers[at // PAGE] * PAGE + at % PAGE for at in range(start, end)]


class Pages:
    """All pages; see `KeysAndValues`. The memory is taken at once.

    Args:
        layers: of the model, in order.
        tokens: that may be held in all.
        longest: tokens of the longest sequence.
        dtype: of keys and values.
        device: of keys and values.

    Attributes:
        keys: of each layer, [pages, PAGE, heads, key features].
        values: of each layer, [pages, PAGE, heads, value features].
    """

    def __init__(
        self, layers: Sequence[LayerShape], *, tokens: int, longest: int, dtype: torch.dtype, device: torch.device
    ) -> None:
        count = max(tokens // PAGE, 1)
        self._layers, self._dtype, self._device = layers, dtype, device
        self.tokens, self.longest = count * PAGE, min(longest, count * PAGE)

        def empty(heads: int, features: int) -> torch.Tensor:
            return torch.empty(count + 1, PAGE, heads, features, dtype=dtype, device=device)

        with torch.inference_mode(mode=False):  # or it could be written to in inference mode only
            self.keys = [empty(layer.heads, layer.key_features) for layer in layers]
            self.values = [empty(layer.heads, layer.value_features) for layer in layers]
        self._free = [*range(count, SPARE, -1)]
        self.spare = PageList(self, [SPARE])

    @property
    def reserved(self) -> int:
        """Return the tokens of all pages that are reserved."""
        return self.tokens - len(self._free) * PAGE

    def reserve(self, tokens: int) -> PageList | None:
        """Return pages for so many tokens or more, which hold anything; None when there are not as many."""
        place = PageList(self, [])
        return self.grow(place, tokens, 0)

    def grow(self, place: PageList, tokens: int, used: int) -> PageList | None:
        """Return the place with pages for so many tokens; None, and the place as it was, without room."""
        more = pages_for(tokens) - len(place.numbers)
        if more > len(self._free):
            return None
        place.numbers += [self._free.pop() for _ in range(more)]
        return place

    def release(self, place: PageList) -> None:
        """Let others have these pages."""
        self._free += reversed(place.numbers)
        place.numbers = []

    def fill(self, place: PageList, prefix: Prefix) -> None:
        """Write the first positions of a place."""
        at = torch.tensor(place.slots(0, prefix.tokens), device=self._device)
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            self.keys[layer].flatten(0, 1)[at] = keys.transpose(0, 1)
            self.values[layer].flatten(0, 1)[at] = values.transpose(0, 1)

    def beside(self, lengths: Sequence[int]) -> Pages:
        """Return room for sequences of these lengths, beside what is here."""
        tokens = sum(pages_for(length) for length in lengths) * PAGE
        return Pages(self._layers, tokens=tokens, longest=max(lengths), dtype=self._dtype, device=self._device)


def pages_for(tokens: int) -> int:
    """Return how many pages so many tokens take."""
    return -(-tokens // PAGE)
