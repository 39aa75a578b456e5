"""Adapters that are attached to a pool: who gets a name, what the pool serves, what each is told."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graft_operator.decisions.attached import MAX_ATTACHED_CHARACTERS, attach
from graft_operator.decisions.attached_status import AttachedReport
from graft_operator.decisions.observed import AdapterView, Observed
from graft_operator.decisions.plan import Plan, reports_without_pool
from graft_operator.decisions.readers import read_adapter
from graft_operator.decisions.transitions import attached_transitions
from graft_operator.keys import PoolKey
from graft_operator.resource import MAX_ATTACHED
from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.pools import (
    BILLING,
    NOW,
    carried_out,
    changed,
    condition,
    current_set,
    make_pool,
    plan_of,
    resolved,
    running,
    sha,
    spec_of,
    status_of,
    with_pods,
)

LAW = {"uri": "pvc://shelf/law"}


def view_of(name: str, /, age: int = 0, uri: str = "pvc://shelf/law", **spec: Any) -> AdapterView:
    """Read an Adapter as the API server has it; a higher age is an older one."""
    metadata = {
        "namespace": "team",
        "name": name,
        "uid": f"uid-{name}",
        "generation": 4,
        "resourceVersion": "1",
        "creationTimestamp": f"2026-01-01T00:00:{59 - age:02}Z",
    }
    body = {"adapterDeploymentName": "support", "uri": uri, **spec}
    return read_adapter({"metadata": metadata, "spec": body, "status": {"observedGeneration": 0}})


def attached_to(observed: Observed, *views: AdapterView, **more: Any) -> Observed:
    return replace(observed, adapters=views, **more)


def report_of(plan: Plan, name: str) -> AttachedReport:
    return next(report for report in plan.attached if report.view.name == name)


def told(report: AttachedReport) -> dict[str, tuple[str, str]]:
    """Map each condition to its status and reason."""
    return {found.type: (found.status, found.reason) for found in report.status.conditions}


def served(*views: AdapterView, **more: Any) -> Observed:
    """Observe a running pool whose pods have the Adapters as well, their statuses written."""
    first = attached_to(running(BILLING), *views, resolutions=resolved(BILLING, LAW))
    second = with_pods(carried_out(first, plan_of(first)), **more)
    statuses = {report.view.key: report.status for report in plan_of(second).attached}
    return attached_to(second, *(replace(view, status=statuses[view.key]) for view in views), resolutions={})


def test_an_adapter_is_served_beside_those_of_the_spec_and_readiness_waits_not_for_it() -> None:
    observed = attached_to(running(BILLING), view_of("law", scale=0.5), resolutions=resolved(BILLING, LAW))
    plan = plan_of(observed)
    entries = {entry.name: entry for entry in current_set(plan).adapters}
    assert list(entries) == ["billing", "law"]
    assert (entries["law"].digest, entries["law"].scale) == (sha(LAW["uri"]), 0.5)
    assert (entries["billing"].inline, entries["law"].inline) == (True, False)
    assert (entries["law"].pinned, entries["law"].share) == (False, 1)
    assert told(report_of(plan, "law"))["Reconciling"] == ("True", "Loading")


def test_an_adapter_that_all_pods_have_is_ready_and_a_second_pass_writes_nothing() -> None:
    observed = attached_to(running(BILLING), view_of("law"), resolutions=resolved(BILLING, LAW))
    report = report_of(plan_of(with_pods(carried_out(observed, plan_of(observed)))), "law")
    assert told(report) == {
        "Available": ("True", "AdapterServed"),
        "Ready": ("True", "AllReady"),
        "Reconciling": ("False", "Settled"),
        "Stalled": ("False", "NoFault"),
    }
    status = report.status
    assert (status.name, status.observed_generation, status.digest) == ("law", 4, sha(LAW["uri"]))
    assert (status.ready_replicas, status.desired_replicas, status.method) == (2, 2, "LORA")
    assert [event.reason for event in attached_transitions(report.view.status, status)] == ["Ready"]
    again = plan_of(served(view_of("law")))
    assert [report.is_news for report in again.attached] == [False]
    assert again.attached[0].status is again.attached[0].view.status, "thousands of them are not made anew"


def test_the_next_operator_knows_the_digest_from_the_status_alone() -> None:
    observed = served(view_of("law"))
    without_sets = tuple(child for child in observed.children if not child.binary_data)
    plan = plan_of(replace(observed, children=without_sets))
    assert {entry.name: entry.digest for entry in current_set(plan).adapters}["law"] == sha(LAW["uri"])
    assert plan.resolves == ()


def test_a_pool_counts_its_adapters_and_lists_its_own_alone() -> None:
    fault = Fault(code=ErrorCode.UNSUPPORTED_METHOD, message="no")
    status = status_of(plan_of(served(view_of("law"), faults={"law": fault})))
    assert [adapter.name for adapter in status.adapters] == ["billing"]
    assert (status.adapter_counts.desired, status.adapter_counts.ready, status.adapter_counts.failed) == (2, 1, 1)


def test_a_bad_adapter_stalls_itself_and_not_the_pool() -> None:
    fault = Fault(code=ErrorCode.UNSUPPORTED_METHOD, message="no such method")
    plan = plan_of(served(view_of("law"), faults={"law": fault}))
    assert told(report_of(plan, "law"))["Stalled"] == ("True", "UnsupportedMethod")
    assert told(report_of(plan, "law"))["Ready"] == ("False", "UnsupportedMethod")
    assert condition(plan, "Ready").status == "True"
    assert condition(plan, "Stalled").status == "False"


def test_a_deleted_adapter_leaves_the_set_and_its_status_alone() -> None:
    plan = plan_of(attached_to(served(view_of("law")), replace(view_of("law"), deleting=True)))
    assert [entry.name for entry in current_set(plan).adapters] == ["billing"]
    assert plan.attached == ()


@pytest.mark.parametrize(
    ("view", "holder"),
    [
        (view_of("mine", name="billing", age=9), "an entry of spec.adapters of AdapterDeployment support"),
        (view_of("mine", name="base", age=9), "the base model of AdapterDeployment support"),
        (view_of("mine", name="law", age=1), "Adapter law, which is older"),
    ],
    ids=["inline", "base", "older"],
)
def test_a_name_has_one_holder_and_the_others_are_told_who_that_is(view: AdapterView, holder: str) -> None:
    plan = plan_of(attached_to(running(BILLING), view_of("law", age=5), view, resolutions=resolved(BILLING, LAW)))
    assert [entry.name for entry in current_set(plan).adapters] == ["billing", "law"]
    refused = report_of(plan, "mine")
    assert told(refused)["Stalled"] == ("True", "NameTaken")
    assert told(refused)["Available"] == ("False", "NameTaken")
    assert holder in (refused.status.message or "")
    assert report_of(plan, "law").status.reason == "Loading"


def test_a_name_that_is_free_again_goes_to_the_next() -> None:
    law, next_one = view_of("law", age=5), view_of("second", name="law", uri="pvc://shelf/other")
    observed = served(law, next_one)
    plan = plan_of(attached_to(observed, observed.adapters[1], resolutions=resolved({"uri": "pvc://shelf/other"})))
    (entry,) = [entry for entry in current_set(plan).adapters if entry.name == "law"]
    assert entry.source.uri == "pvc://shelf/other"
    assert told(report_of(plan, "second"))["Stalled"] == ("False", "NoFault")


def test_the_limits_of_the_pool_hold_for_attached_adapters() -> None:
    plan = plan_of(
        attached_to(running(BILLING), view_of("law", uri="pvc://elsewhere/law"), view_of("web", uri="hf://a/b"))
    )
    assert told(report_of(plan, "law"))["Stalled"] == ("True", "SourceNotDeclared")
    assert "the administrator allows pvc, file" in (report_of(plan, "web").status.message or "")
    assert "of Adapter law" in (report_of(plan, "law").status.message or "")


def test_a_merged_pool_serves_no_attached_adapters() -> None:
    merge = {"merge": {"name": "both", "adapters": [{"name": "billing"}]}}
    observed = changed(running(BILLING), spec_of(BILLING, **merge))
    plan = plan_of(attached_to(observed, view_of("law"), resolutions=resolved(BILLING, LAW)))
    assert told(report_of(plan, "law"))["Stalled"] == ("True", "PoolIsMerged")


def test_an_adapter_without_its_pool_waits_for_it() -> None:
    (report,) = reports_without_pool(PoolKey("team", "support"), [view_of("law")], NOW)
    assert told(report)["Ready"] == ("False", "PoolNotFound")
    assert told(report)["Reconciling"] == ("True", "PoolNotFound")
    assert told(report)["Stalled"] == ("False", "NoFault")
    assert report.status.observed_generation == 4


def test_an_adapter_whose_pool_cannot_be_read_keeps_what_is_known_and_says_why() -> None:
    report = report_of(plan_of(changed(served(view_of("law")), {"replicas": "two"})), "law")
    assert told(report)["Ready"] == ("False", "InvalidSpec")
    assert (report.status.digest, report.status.ready_replicas) == (sha(LAW["uri"]), 2)


def test_an_adapter_that_cannot_be_read_is_told_and_holds_no_name() -> None:
    plan = plan_of(attached_to(running(BILLING), view_of("law", scale="much")))
    assert told(report_of(plan, "law"))["Stalled"] == ("True", "InvalidSpec")
    assert report_of(plan, "law").status.name == "law"
    assert status_of(plan).adapter_counts.desired == 1


def test_a_pool_answers_for_so_many_adapters_and_the_youngest_are_told() -> None:
    views = [view_of(f"a{number}") for number in range(MAX_ATTACHED + 1)]
    attached = attach(make_pool(), views)
    assert len(attached.wanted) == MAX_ATTACHED
    assert [failure.reason for failure in attached.refused.values()] == ["TooManyAdapters"]


def test_sources_with_long_names_leave_room_for_fewer() -> None:
    long = "pvc://shelf/" + "x" * 1000
    attached = attach(make_pool(), [view_of(f"a{number}", uri=long) for number in range(300)])
    assert len(attached.wanted) == MAX_ATTACHED_CHARACTERS // (len(long) + 4)


def test_a_check_reaches_the_set_and_counts_among_the_characters() -> None:
    check = {"message": "x" * 1000, "equals": "4"}
    (wanted,) = attach(make_pool(), [view_of("a", check=check)]).wanted
    assert wanted.check == AnswerCheck(message="x" * 1000, equals="4")
    attached = attach(make_pool(), [view_of(f"a{number:03}", check=check) for number in range(300)])
    assert len(attached.wanted) == MAX_ATTACHED_CHARACTERS // (len(LAW["uri"]) + 4 + 1001)
