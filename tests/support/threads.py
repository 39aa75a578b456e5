"""Blocking work without threads, for tests whose order of events must be the same each time."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from graft_runtime.threads import Threads


def run_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Do what is given to `Threads` at once, in the event loop's thread."""

    async def at_once(_: Threads, function: Callable[..., Any], *arguments: Any, **options: Any) -> Any:
        return function(*arguments, **options)

    monkeypatch.setattr(Threads, "run", at_once)
