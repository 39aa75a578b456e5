"""Something changed under a pass."""

from __future__ import annotations


class RacedError(Exception):
    """Something changed under the pass; the next one sees it."""
