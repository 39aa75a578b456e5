"""Keys and values of the sequences that run, in pages of one pool: a page never moves, and its address is fixed."""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

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
    known: int = 0

    @property
    def capacity(self) -> int:
        """Return how many tokens the pages have room for."""
        return len(self.numbers) * PAGE

    def slots(self, start: int, end: int) -> list[int]:
        """Return where in the pool the tokens `start` … `end` lie."""
        return [self.numbers[at // PAGE] * PAGE + at % PAGE for at in range(start, end)]


class Pages:
    """All pages; see `KeysAndValues`. The memory is taken at once.

    A page that is full may be kept: sequences that begin with the same read the one page, and nobody writes to it. It
    stays when the last of them has left, until its room is needed; those that were left least recently go first.

    Args:
        layers: of the model, in order.
        tokens: that may be held in all.
        longest: tokens of the longest sequence.
        dtype: of keys and values.
        device: of keys and values.
        keeps: whether pages are kept for later sequences.

    Attributes:
        keys: of each layer, [pages, PAGE, heads, key features].
        values: of each layer, [pages, PAGE, heads, value features].
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        tokens: int,
        longest: int,
        dtype: torch.dtype,
        device: torch.device,
        keeps: bool = False,
    ) -> None:
        count = max(tokens // PAGE, 1)
        self._layers, self._dtype, self._device = layers, dtype, device
        self.tokens, self.longest = count * PAGE, min(longest, count * PAGE)

        def empty(heads: int, features: int) -> torch.Tensor:
            return torch.empty(count + 1, PAGE, heads, features, dtype=dtype, device=device)

        with torch.inference_mode(mode=False):  # or it could be written to in inference mode only
            self.keys = [empty(layer.heads, layer.key_features) for layer in layers]
            self.values = [empty(layer.heads, layer.value_features) for layer in layers]
        self.block = PAGE if keeps else 0
        self._free = [*range(count, SPARE, -1)]
        self._holds: Counter[int] = Counter()
        """How many sequences have each page."""
        self._by_key: dict[bytes, int] = {}
        self._keys_of: dict[int, bytes] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        """Pages that are kept and no sequence has, the one that was left least recently first."""
        self.spare = PageList(self, [SPARE])

    @property
    def reserved(self) -> int:
        """Return the tokens of all pages that are reserved."""
        return self.tokens - self._room * PAGE

    @property
    def _room(self) -> int:
        """Return how many pages nobody has."""
        return len(self._free) + len(self._idle)

    def reserve(self, tokens: int, past: Sequence[bytes] = ()) -> PageList | None:
        """Return pages for so many tokens or more, with what is known; None when there are not as many."""
        shared = self._known(past)
        for number in shared:
            self._idle.pop(number, None)
        self._holds.update(shared)
        place = PageList(self, shared, len(shared) * PAGE)
        larger = self.grow(place, tokens, place.known)
        if larger is None:
            self.release(place)
        return larger

    def keep(self, place: PageList, past: Sequence[bytes]) -> None:
        """Let others have these pages of a sequence as well, which are full."""
        for key, number in zip(past if self.block else (), place.numbers, strict=False):
            if key not in self._by_key and number not in self._keys_of:
                self._by_key[key], self._keys_of[number] = number, key

    def grow(self, place: PageList, tokens: int, used: int) -> PageList | None:
        """Return the place with pages for so many tokens; None, and the place as it was, without room."""
        more = pages_for(tokens) - len(place.numbers)
        if more > self._room:
            return None
        taken = [self._free.pop() if self._free else self._forget_one() for _ in range(more)]
        self._holds.update(taken)
        place.numbers += taken
        return place

    def release(self, place: PageList) -> None:
        """Let others have these pages, if nobody else has them."""
        for number in reversed(place.numbers):
            self._holds[number] -= 1
            if self._holds[number]:
                continue
            if number in self._keys_of:
                self._idle[number] = None
            else:
                self._free.append(number)
        place.numbers = []

    def _known(self, past: Sequence[bytes]) -> list[int]:
        """Return the pages of a sequence that are there, as far as all before are."""
        return [self._by_key[key] for key in takewhile(self._by_key.__contains__, past)]

    def _forget_one(self) -> int:
        number, _ = self._idle.popitem(last=False)
        del self._by_key[self._keys_of.pop(number)]
        return number

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
