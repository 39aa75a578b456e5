"""How long to wait before the next attempt."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that double with every failure in a row."""

    first_seconds: float
    longest_seconds: float

    def seconds(self, failures: int) -> float:
        """Return the wait after `failures` failures in a row, at least one."""
        return min(self.longest_seconds, self.first_seconds * (1 << min(max(failures - 1, 0), 16)))
