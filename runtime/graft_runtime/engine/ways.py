"""Who makes way: one set of adapters runs much, and another waits for its first."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from graft_runtime.engine.requests import Request


def who_makes_way(running: Sequence[Request], waiting: Request) -> Request | None:
    """Return which request leaves for one that waits: the youngest of the adapters that run most, by their shares.

    None where those of the request that waits would run more than theirs: so nobody changes places again and again.

    Args:
        running: the oldest first.
        waiting: has waited for long.
    """
    counts = Counter(request.whose for request in running)
    shares = {request.whose: request.share for request in running}
    most = max(counts, key=lambda whose: counts[whose] / shares[whose], default=None)
    if most is None or (counts[most] - 1) * waiting.share < (counts[waiting.whose] + 1) * shares[most]:
        return None
    return next(request for request in reversed(running) if request.whose == most)
