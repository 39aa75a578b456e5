"""Who makes way: one set of adapters runs or holds much, and another waits for its first, or has no room to grow."""

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


def who_gives_room(running: Sequence[tuple[Request, int]]) -> Request:
    """Return which request leaves where there is no room to grow: the youngest of the adapters that hold most, by their
    shares.

    The oldest of all is the last to leave: one always goes on.

    Args:
        running: the oldest first, each with the tokens that there is room for.
    """
    held = Counter[frozenset[str]]()
    for request, tokens in running:
        held[request.whose] += tokens
    leaving = [request for request, _ in reversed(running)]
    return max(leaving[:-1] or leaving, key=lambda request: held[request.whose] / request.share)
