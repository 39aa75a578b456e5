"""Half a minute of `make soak`: good clients on three adapters, and every attack once."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest

from tests.soak.report import Attacked, Figures, Soak, figures
from tests.soak.soak import ATTACKS, run

SECONDS = 36.0
"""Too few for times, which `make soak` compares, and for memory to come back."""

logger = logging.getLogger(__name__)


@pytest.mark.timeout(400)  # half a minute, and what a busy machine takes for a pod and 50 adapters
def test_good_clients_go_on_beside_all_attacks(tmp_path: Path) -> None:
    found = run(tmp_path, SECONDS, rounds=1, say=logger.info, return_seconds=0)
    assert not found.damage(), found.table()
    assert [one.name for one in found.attacks] == [attack.name for attack in ATTACKS]
    assert all(one.clients.requests for one in found.attacks), found.table()


QUIET = Figures(1000, 0, 0.1, 0.2)
ATTACKED = Attacked("one", Figures(1000, 0, 0.1, 0.5), 100, 0.1, 0.1, {})
HELD = {"api": 100 << 20}
GOOD = Soak(QUIET, ATTACKED.clients, [ATTACKED], HELD, HELD)


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({}, ""),
        ({"under_attack": Figures(1000, 20, 0.1, 0.61)}, "p99 under attack is 0.610 s"),
        ({"attacks": [Attacked("one", Figures(1000, 0, 0.1, 0.7), 0, 0, 0, {})]}, "one: p99 is 0.700 s"),
        ({"attacks": [Attacked("one", Figures(10, 0, 0.1, 0.7), 0, 0, 0, {})]}, ""),
        ({"attacks": [Attacked("one", QUIET, 0, 6.0, 0, {})]}, "/livez took 6.0 s"),
        ({"attacks": [Attacked("one", QUIET, 0, 0, float("inf"), {})]}, "the control port took inf s"),
        ({"memory_after": {"api": 200 << 20}}, "200 MiB are held at the end, expected at most 148 MiB"),
        ({"restarts": 1}, "started again 1 times"),
        ({"wrong": ["another's answer"]}, "another's answer"),
        ({"internal": ["a traceback"]}, "a traceback"),
    ],
    ids=str,
)
def test_what_must_not_be_is_told(changed: dict[str, object], told: str) -> None:
    faults = Soak(**{**vars(GOOD), **changed}).faults()
    assert (told in "".join(faults), len(faults)) == (True, 1 if told else 0)


def test_a_request_that_failed_took_for_ever() -> None:
    found = figures([0.1] * 98 + [float("inf")] * 2)
    assert (found.failed, found.p50, found.p99) == (2, 0.1, float("inf"))
    assert figures([0.1] * 99 + [float("inf")]).p99 == 0.1
