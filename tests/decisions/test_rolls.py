"""No adapter is lost with new pods: they wait until they answer under the names that others answer under."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field, replace
from typing import cast

import pytest
from graft_operator.decisions.observed import Observed
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode
from graft_runtime.pod.adapters import Adapters
from graft_runtime.pod.base_life import BaseLife
from graft_runtime.pod.readiness import Readiness
from graft_runtime.pod.sets import AdapterSets

from tests.support.pools import (
    BILLING,
    SQL,
    carried_out,
    changed,
    current_set,
    plan_of,
    running,
    spec_of,
    with_pods,
)

UNSAFE = Fault(code=ErrorCode.UNSAFE_FILE, message="no")
OTHER_LIMITS = spec_of(BILLING, SQL, engine={"maxRank": 8})
OTHER_PODS = spec_of(BILLING, SQL, podTemplate={"metadata": {"labels": {"team": "a"}}})


def required(observed: Observed) -> set[str]:
    """Return the names that the set requires that the next plan stores."""
    return {entry.name for entry in current_set(plan_of(observed)).adapters if entry.required}


@pytest.mark.parametrize("spec", [OTHER_LIMITS, OTHER_PODS])
def test_a_roll_begins_with_a_set_that_requires_what_the_pods_answer_under(spec: dict[str, object]) -> None:
    faulty = with_pods(running(BILLING, SQL), faults={"sql": UNSAFE})
    plan = plan_of(changed(faulty, spec))
    assert {entry.name for entry in current_set(plan).adapters if entry.required} == {"billing"}
    assert "Deployment" in {apply.body["kind"] for apply in plan.workload}, "which comes after what pods mount"


def test_nothing_is_required_once_the_pods_of_before_are_gone() -> None:
    rolling = changed(running(BILLING, SQL), OTHER_LIMITS)
    rolling = carried_out(rolling, plan_of(rolling))
    assert required(with_pods(rolling)) == set()


def test_a_pod_that_comes_beside_others_answers_under_their_names_first() -> None:
    """The set that requires it is stored before the Deployment makes the pod."""
    faulty = with_pods(running(BILLING, SQL), faults={"sql": UNSAFE})
    plan = plan_of(changed(faulty, spec_of(BILLING, SQL, replicas=3)))
    assert {entry.name for entry in current_set(plan).adapters if entry.required} == {"billing"}
    assert "Deployment" in {apply.body["kind"] for apply in plan.workload}


def test_a_pod_that_starts_again_answers_under_the_others_names_first() -> None:
    observed = running(BILLING, SQL)
    first, *others = observed.pods
    assert required(replace(observed, pods=(replace(first, ready=False), *others))) == {"billing", "sql"}


@pytest.mark.parametrize(
    "spec", [spec_of(BILLING, SQL, replicas=1), spec_of(BILLING, SQL, {"name": "new", "uri": "pvc://shelf/new"})]
)
def test_where_no_pod_is_to_come_nothing_is_required(spec: dict[str, object]) -> None:
    plan = plan_of(changed(running(BILLING, SQL), spec))
    sets = [apply.body for apply in plan.mounts if "binaryData" in apply.body]
    assert all(not entry.required for _ in sets for entry in current_set(plan).adapters)


def test_pods_that_take_no_requests_require_nothing() -> None:
    observed = running(BILLING, SQL)
    unready = replace(observed, pods=tuple(replace(pod, ready=False) for pod in observed.pods))
    assert required(changed(unready, OTHER_LIMITS)) == set()


@dataclass
class Played:
    """Stands in for what readiness asks: a base that serves since the loop began, one set, adapters with a fault."""

    current: AdapterSet | None
    serving_since: float = 0.0
    settled: set[str] = field(default_factory=set)

    def is_settled(self, entry: AdapterEntry) -> bool:
        return entry.name in self.settled


def ready(played: Played, startup_seconds: float) -> bool:
    base, adapters, sets = cast(BaseLife, played), cast(Adapters, played), cast(AdapterSets, played)
    return Readiness(base, adapters, sets, startup_seconds).ready


def entry_of(name: str, **fields: bool) -> AdapterEntry:
    return AdapterEntry(name=name, source=Source(uri=f"pvc://shelf/{name}"), **fields)


async def test_readiness_waits_without_an_end_for_what_is_required_alone() -> None:
    entries = (entry_of("billing", required=True), entry_of("sql"))
    found = Played(AdapterSet(pool_uid="p", config_hash="c", generation=1, adapters=entries))
    found.serving_since = asyncio.get_running_loop().time() - 100
    assert not ready(found, 10)
    found.settled = {"billing"}
    assert ready(found, 10), "time is up for the other"
    assert not ready(found, 1000)
    found.settled = {"billing", "sql"}
    assert ready(found, 1000)
    found.current = None
    assert not ready(found, 1000)
    assert ready(found, 10)
