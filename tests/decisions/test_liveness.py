"""When /livez gives up on the engine: work is pending, and no step has ended for too long."""

from __future__ import annotations

import pytest
from graft_runtime.pod.engine_client import Progress


@pytest.mark.parametrize(
    ("slowest", "silent", "pending", "stalled"),
    [
        (0.1, 59, True, False),
        (0.1, 61, True, True),
        (0.1, 10_000, False, False),
        (20.0, 199, True, False),
        (20.0, 201, True, True),
    ],
    ids=["in time", "over a minute", "nothing to do", "slow steps", "even for slow steps"],
)
def test_a_stall(slowest: float, silent: float, *, pending: bool, stalled: bool) -> None:
    progress = Progress(last_change=1000.0, slowest=slowest)
    assert progress.stalled(1000.0 + silent, pending=pending) is stalled
