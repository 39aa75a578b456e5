"""What is known of a sequence's beginning from others before it: keys and values of whole blocks, by all that they are
made of.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from hashlib import sha256

Partaker = tuple[str, float, int]
"""An adapter of a sequence: its digest, how much of it, and the position from which it takes part."""


class Past:
    """The blocks of one sequence by their keys.

    Keys and values of a token depend on the tokens up to it and on the adapters that took part in each of them, on
    nothing else of a request; the base and its dtype are the process's. The key of a block covers all of that, so two
    sequences share blocks only where the same was computed. Where an adapter has not begun, a block is the base's.

    Args:
        block: tokens of a block; 0: nothing is shared.
        salt: sequences of another salt share nothing with this one.
        adapters: of the sequence.
        ids: returns its tokens from one position to another.
    """

    def __init__(
        self, block: int, salt: str, adapters: Sequence[Partaker], ids: Callable[[int, int], Sequence[int]]
    ) -> None:
        self._block, self._adapters, self._ids = block, sorted(adapters), ids
        self._keys: list[bytes] = []
        self._last = sha256(salt.encode()).digest()

    def blocks(self, tokens: int) -> Sequence[bytes]:
        """Return the keys of the whole blocks in the first so many tokens, the first first."""
        if not self._block:
            return ()
        while (len(self._keys) + 1) * self._block <= tokens:
            self._keys.append(self._next())
        return self._keys[: tokens // self._block]

    def _next(self) -> bytes:
        start = len(self._keys) * self._block
        end = start + self._block
        whose = [(digest, weight, max(0, begins - start)) for digest, weight, begins in self._adapters if begins < end]
        self._last = sha256(self._last + repr((whose, [*self._ids(start, end)])).encode()).digest()
        return self._last


class Recent:
    """Blocks by their keys, and which was used least recently.

    Of a sequence the first block counts as used last: so none goes before those that begin with it.
    """

    def __init__(self) -> None:
        self._numbers: OrderedDict[bytes, int] = OrderedDict()

    def __len__(self) -> int:
        return len(self._numbers)

    def known(self, keys: Sequence[bytes]) -> list[int]:
        """Return the numbers of a sequence's blocks, as far as all before are there; they are used now."""
        numbers = []
        for key in keys:
            if key not in self._numbers:
                break
            numbers.append(self._numbers[key])
        for key in reversed(keys[: len(numbers)]):
            self._numbers.move_to_end(key)
        return numbers

    def put(self, keys: Sequence[bytes], numbers: Sequence[int]) -> None:
        """Take in all blocks of a sequence."""
        for key, number in zip(reversed(keys), reversed(numbers), strict=True):
            self._numbers[key] = number
            self._numbers.move_to_end(key)

    def pop(self) -> int:
        """Take out the block that was used least recently, and return its number."""
        return self._numbers.popitem(last=False)[1]
