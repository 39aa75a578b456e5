"""Sources are looked at again as the pool asks for it: at intervals, and whenever its annotation changes."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graft_operator.decisions.observed import Observed, ResolvedSource
from graft_operator.decisions.plan import Plan
from graft_operator.decisions.readers import read_pool
from graft_operator.resource import interval_seconds
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.bodies import pool_body
from tests.support.pools import BILLING, NOW, SQL, carried_out, current_set, plan_of, running, sha

SOURCE = Source(uri=BILLING["uri"])
DIGEST, OTHER = sha(BILLING["uri"]), sha("other bytes")
EVERY_HOUR = {**BILLING, "refreshInterval": "1h"}


def answered(observed: Observed, seconds_ago: float, digest: str | None = DIGEST, **more: Any) -> Observed:
    answer = ResolvedSource(digest, asked_at=NOW - seconds_ago, retry_at=NOW - seconds_ago + 4, **more)
    return replace(observed, resolutions={SOURCE: answer})


def asked(plan: Plan) -> list[str]:
    return [resolve.source.uri for resolve in plan.resolves]


@pytest.mark.parametrize(("text", "seconds"), [("1h", 3600), ("1h30m", 5400), ("90s", 90), ("1h1m1s", 3661)])
def test_an_interval_in_seconds(text: str, seconds: int) -> None:
    assert interval_seconds(text) == seconds


def test_a_source_is_looked_at_again_after_its_interval_and_not_before() -> None:
    observed = running(EVERY_HOUR, SQL)
    assert asked(plan_of(observed)) == [BILLING["uri"]], "an operator that starts does not know of earlier looks"
    early = plan_of(answered(observed, 3500))
    assert (asked(early), early.requeue_after) == ([], 100)
    assert early.remembered == frozenset({SOURCE}), "with the time of the last look"
    assert asked(plan_of(answered(observed, 3600))) == [BILLING["uri"]]


def test_an_adapter_s_own_interval_wins_over_the_pool_s() -> None:
    observed = running(EVERY_HOUR, SQL, refreshInterval="10m")
    plan = plan_of(answered(observed, 1000))
    assert asked(plan) == [SQL["uri"]]
    assert asked(plan_of(running({**BILLING, "digest": DIGEST}, refreshInterval="10m"))) == [], "it names its bytes"


def test_other_bytes_become_the_wanted_version_beside_the_one_that_serves() -> None:
    (entry,) = current_set(plan_of(answered(running(EVERY_HOUR), 1, OTHER))).adapters
    assert entry.digest == OTHER
    assert entry.serving is not None
    assert entry.serving.digest == DIGEST


@pytest.mark.parametrize("code", [ErrorCode.NOT_FOUND, ErrorCode.UNAUTHORIZED, ErrorCode.SOURCE_UNAVAILABLE])
def test_a_source_that_is_gone_changes_nothing(code: ErrorCode) -> None:
    plan = plan_of(answered(running(EVERY_HOUR), 1, None, fault=Fault(code=code, message="gone")))
    assert (plan.mounts, plan.pushes, asked(plan)) == ((), (), [])


def test_the_annotation_has_each_source_looked_at_once() -> None:
    observed = replace(running(BILLING, {**SQL, "digest": sha(SQL["uri"])}), refresh_since=NOW)
    assert asked(plan_of(observed)) == [BILLING["uri"]]
    assert asked(plan_of(answered(observed, 10))) == [BILLING["uri"]], "an earlier look does not count"
    looked = plan_of(answered(observed, -1))
    assert (asked(looked), looked.mounts) == ([], ())
    other = answered(observed, -1, OTHER)
    plan = plan_of(other)
    assert current_set(plan).adapters[0].digest == OTHER
    assert plan.remembered == frozenset({SOURCE}), "until it is written down"
    written = plan_of(carried_out(other, plan))
    assert (asked(written), written.remembered) == ([], frozenset())


def test_a_merge_is_not_exchanged() -> None:
    merge = {"name": "both", "adapters": [{"name": "billing"}]}
    assert asked(plan_of(replace(running(BILLING, merge=merge), refresh_since=NOW))) == []


def test_the_annotation_is_read() -> None:
    assert read_pool(pool_body(annotations={"graft.dev/refresh": "today"})).refresh == "today"
    assert read_pool(pool_body()).refresh == ""
