"""How many random cases of each kind a run tries. The run's summary says how many it did."""

from __future__ import annotations

from collections import Counter

PLANNED = {
    "files of adapters": 4000,
    "files of other methods": 4000,
    "compiled adapters": 2000,
    "mounted adapters": 160,
    "tokenizers": 4000,
    "chat templates": 300,
    "bodies of requests": 8000,
    "names and messages": 4000,
    "slow clients": 200,
}
TRIED: Counter[str] = Counter()


def tried(kind: str, count: int = 1) -> None:
    """Take note of cases."""
    assert kind in PLANNED, f"{kind} is no kind of cases"
    TRIED[kind] += count


def summary() -> list[str]:
    """Return how many cases of each kind were tried, and of how many."""
    lines = [f"{kind}: {count:,} of {PLANNED[kind]:,}" for kind, count in TRIED.items()]
    return [*lines, f"random cases: {TRIED.total():,}"] if lines else []
