"""How long to wait before something that failed is tried again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Backoff:
    """Waits that double with each failure in a row."""

    first_seconds: float
    longest_seconds: float
    """The longest."""

    def seconds(self, failures: int) -> float:
        """Return how long to wait after so many failures in a row, at least 1."""
        return min(self.longest_seconds, self.first_seconds * 2.0 ** min(failures - 1, 64))
