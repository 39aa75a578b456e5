"""What one namespace, or one object in it, may take of the operator, so that the others keep theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable

REMEMBERED = 10_000
"""Keys of a pace; those that are at rest are forgotten beyond them."""


class Room:
    """Bytes that are held at the same time, counted by namespace.

    Args:
        most: bytes a namespace.
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._taken: dict[str, int] = {}

    def take(self, namespace: str, size: int) -> bool:
        """Take room for `size` bytes, if there is as much."""
        taken = self._taken.get(namespace, 0) + size
        if taken > self.most:
            return False
        self._taken[namespace] = taken
        return True

    def give(self, namespace: str, size: int) -> None:
        """Give back what was taken."""
        left = self._taken.get(namespace, 0) - size
        if left > 0:
            self._taken[namespace] = left
        else:
            self._taken.pop(namespace, None)


class Pace:
    """How often something happens, or how much of it, for each key: a token bucket.

    Args:
        burst: at once.
        per_second: on and on.
        clock: seconds that only grow.
    """

    def __init__(self, burst: float, per_second: float, clock: Callable[[], float] = time.monotonic) -> None:
        self._burst = burst
        self._per_second = per_second
        self._clock = clock
        self._spent: dict[Hashable, tuple[float, float]] = {}
        """Key → what was spent of the burst, and when that was."""

    def may(self, key: Hashable) -> bool:
        """Tell whether it may happen once more now, and count it if so."""
        if self._spent_now(key) + 1 > self._burst:
            return False
        self.count(key)
        return True

    def count(self, key: Hashable, amount: float = 1.0) -> None:
        """Count what has happened."""
        if len(self._spent) >= REMEMBERED:
            self._spent = {key: spent for key, spent in self._spent.items() if self._spent_now(key) > 0}
        self._spent[key] = self._spent_now(key) + amount, self._clock()

    def wait(self, key: Hashable) -> float:
        """Return the seconds until the burst is no longer exceeded."""
        return max(0.0, (self._spent_now(key) - self._burst) / self._per_second)

    def _spent_now(self, key: Hashable) -> float:
        spent, when = self._spent.get(key, (0.0, 0.0))
        return max(0.0, spent - (self._clock() - when) * self._per_second)
