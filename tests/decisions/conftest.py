"""Fixtures of the unit tests."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tests.support.played_engine import Files, Played
from tests.support.threads import run_at_once


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Played]:
    """Make hot adapters whose engine the test plays."""
    monkeypatch.setattr("graft_runtime.pod.preparations.read_adapter_files", lambda *_, **__: Files)
    run_at_once(monkeypatch)
    return Played
