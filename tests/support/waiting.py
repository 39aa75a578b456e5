"""Wait for a condition, never for a time: from a thread, or inside an event loop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any, TypeVar

PAUSE_SECONDS = 0.02

T = TypeVar("T")


def wait_until(
    holds: Callable[[], T],
    what: str | Callable[[], Any] = "what was waited for",
    seconds: float = 60.0,
    *,
    retried: tuple[type[Exception], ...] = (),
) -> T:
    """Return what `holds` returns as soon as it is true, and fail after `seconds`.

    Args:
        what: names the condition in the failure; a function is called then, to tell how things stand.
        retried: exceptions of `holds` that count as "not yet".
    """
    deadline = time.monotonic() + seconds
    while True:
        try:
            if found := holds():
                return found
        except retried:
            pass
        assert time.monotonic() < deadline, _not_in_time(what, seconds)
        time.sleep(PAUSE_SECONDS)


async def until(holds: Callable[[], Any], what: str = "what was waited for", seconds: float = 10.0) -> None:
    """Wait until `holds` returns true, while the event loop goes on, and fail after `seconds`."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, _not_in_time(what, seconds)
        await asyncio.sleep(0.001)


def _not_in_time(what: str | Callable[[], Any], seconds: float) -> str:
    return f"after {seconds:.1f} s still not: {what() if callable(what) else what}"
