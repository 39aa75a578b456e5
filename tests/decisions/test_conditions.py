"""The status and its four conditions, as a table of worlds; Events on transitions only."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from graft_operator.decisions.adapter_sets import AdapterPlan
from graft_operator.decisions.conditions import ConditionType, Reason, Verdict, dated, timestamp
from graft_operator.decisions.observed import Child, Failure, Observed, PodReport, PodView, Rollout
from graft_operator.decisions.pool_status import adapter_statuses, make_status
from graft_operator.decisions.transitions import transitions
from graft_operator.decisions.verdicts import READY
from graft_operator.decisions.wanted_adapters import inline_adapters
from graft_operator.resource import AdapterDeploymentStatus, Condition, MergedAdapterStatus, MergeStatus
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import Merge, MergePart
from graft_runtime.contract.status import (
    AdapterReport,
    AdapterState,
    BaseReport,
    BaseState,
    RuntimeStatus,
)
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.pools import BILLING, UID, pool_of, runtime_status, spec_of, view_of

NOW = 1_800_000_000.0


def test_a_condition_is_dated_when_its_status_turns_and_only_then() -> None:
    verdict = (ConditionType.READY, Verdict(False, Reason.ROLLING_OUT, "0 of 1"))
    first = dated([verdict], (), 1, NOW)
    again = dated([(ConditionType.READY, Verdict(False, Reason.PODS_NOT_READY, "x"))], first, 2, NOW + 60)
    turned = dated([(ConditionType.READY, Verdict(True, Reason.ALL_READY))], again, 2, NOW + 120)
    assert [found[0].last_transition_time for found in (first, again, turned)] == [
        timestamp(NOW),
        timestamp(NOW),
        timestamp(NOW + 120),
    ]
    assert (again[0].reason, again[0].observed_generation) == ("PodsNotReady", 2)


def test_a_condition_without_a_date_gets_one() -> None:
    old = Condition(type="Ready", status="False", reason="RollingOut")
    assert dated([(ConditionType.READY, Verdict(False, Reason.ROLLING_OUT))], (old,), 1, NOW)[0].last_transition_time


def test_timestamps_are_rfc_3339() -> None:
    assert timestamp(0) == "1970-01-01T00:00:00Z"


# The status as a whole: one world, and what differs from it

SPEC = spec_of(BILLING)
DIGEST = "sha256:" + "a" * 64
ENTRY = AdapterEntry(name="billing", source=Source(uri="pvc://shelf/billing"), digest=DIGEST)
SET = AdapterSet(pool_uid=UID, config_hash="current", generation=3, adapters=(ENTRY,))
ROLLOUT = Rollout(
    generation=2,
    observed_generation=2,
    desired=2,
    replicas=2,
    updated=2,
    config_hash="current",
    template_hash="wanted",
    pod_template_hash="template",
)
REPORT = runtime_status(SET)
NOT_A_MODEL = Fault(code=ErrorCode.NOT_A_MODEL, message="no model there")
OTHER_VERSION = Fault(
    code=ErrorCode.UNSUPPORTED_CONTRACT_VERSION, message="of version 2, expected version 1\n\nhint: use one release"
)
BROKEN = REPORT.model_copy(
    update={
        "base": BaseReport(name="base", state=BaseState.FAILED, fault=NOT_A_MODEL),
        "adapters": tuple(adapter.model_copy(update={"state": AdapterState.CHECKING}) for adapter in REPORT.adapters),
    }
)
"""Without a base no adapter gets further than that."""
NO_ROOM = BROKEN.model_copy(
    update={
        "base": BaseReport(
            name="base", state=BaseState.FAILED, fault=Fault(code=ErrorCode.NO_CAPACITY, message="needs 2 GiB")
        )
    }
)
BILLING_PART = MergePart(name="billing", source=Source(uri="pvc://shelf/billing"), digest=DIGEST, weight=0.5)
SUM = Merge(name="both", adapters=(BILLING_PART,))
MERGED = REPORT.model_copy(
    update={
        "base": BaseReport(name="base", state=BaseState.SERVING, merge=SUM),
        "adapters": (AdapterReport(name="billing", digest=DIGEST, state=AdapterState.MERGED),),
    }
)
MERGE = {"merge": {"name": "both", "adapters": [{"name": "billing", "weight": 0.5}]}}
LOADING = REPORT.model_copy(update={"base": BaseReport(name="base", state=BaseState.LOADING)})


def with_adapter(state: AdapterState, code: ErrorCode | None = None, digest: str = DIGEST) -> RuntimeStatus:
    fault = None if code is None else Fault(code=code, message="why")
    report = AdapterReport(name="billing", digest=digest, state=state, fault=fault)
    return REPORT.model_copy(update={"adapters": (report,)})


@dataclass(frozen=True)
class World:
    """Two Ready pods with everything, unless told otherwise."""

    spec: dict[str, Any] = field(default_factory=dict)
    rollout: Rollout | None = ROLLOUT
    reports: tuple[RuntimeStatus | None, ...] = (REPORT, REPORT)
    ready: tuple[bool, ...] = (True, True)
    templates: tuple[str, ...] = ("template", "template")
    trouble: str | None = None
    stuck: tuple[bool, ...] = (False, False)
    failure: Failure | None = None
    fault: Fault | None = None
    """Why nothing can be read of the pods without a report."""

    def status(self) -> AdapterDeploymentStatus:
        deployment = Child("Deployment", "support", "d", "1", UID, "f", rollout=self.rollout)
        pods = tuple(
            PodView(
                f"pod-{number}",
                f"u{number}",
                "10.0.0.1",
                "current",
                ready,
                template,
                trouble=self.trouble,
                stuck=stuck,
            )
            for number, (ready, template, stuck) in enumerate(zip(self.ready, self.templates, self.stuck, strict=False))
        )
        reports = {
            f"u{number}": PodReport(
                status=report,
                asked=True,
                unreachable=None if report else "no answer",
                fault=None if report else self.fault,
            )
            for number, report in enumerate(self.reports)
        }
        observed = Observed(
            pool=view_of(SPEC, 2),
            children=() if self.rollout is None else (deployment,),
            pods=pods,
            reports=reports,
        )
        pool = pool_of(view_of({**SPEC, **self.spec}, 2))
        sets, plans = {"current": SET}, [AdapterPlan(adapter, ENTRY) for adapter in inline_adapters(pool)]
        return make_status(
            pool,
            observed,
            failure=self.failure,
            template_hash="wanted",
            sets=sets,
            current="current",
            adapters=adapter_statuses(pool, observed, sets, plans, NOW),
            now=NOW,
        )


CASES = {
    # world → Available, Ready, Reconciling, Stalled
    "everything-is-there": (World(), "+BaseServed", "+AllReady", "-Settled", "-NoFault"),
    "nothing-was-made-yet": (
        World(rollout=None, reports=(), ready=()),
        "-PodsNotReady",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "the-controller-has-not-seen-the-new-template": (
        World(rollout=replace(ROLLOUT, generation=3)),
        "+BaseServed",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "the-new-template-is-not-applied-yet": (
        World(rollout=replace(ROLLOUT, template_hash="older")),
        "+BaseServed",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "a-pod-of-the-template-before-has-failed-and-its-successor-loads": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(BROKEN, LOADING),
            ready=(False, False),
            templates=("before", "template"),
        ),
        "-PodsNotReady",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "old-pods-are-left": (
        World(rollout=replace(ROLLOUT, replicas=3)),
        "+BaseServed",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "one-pod-loads": (
        World(ready=(True, False), reports=(REPORT, LOADING)),
        "+BaseServed",
        "-PodsNotReady",
        "+PodsNotReady",
        "-NoFault",
    ),
    "no-pod-is-ready": (
        World(ready=(False, False), reports=(LOADING, LOADING)),
        "-PodsNotReady",
        "-PodsNotReady",
        "+PodsNotReady",
        "-NoFault",
    ),
    "the-base-model-is-broken": (
        World(ready=(False, False), reports=(BROKEN, BROKEN)),
        "-NotAModel",
        "-NotAModel",
        "-Settled",
        "+NotAModel",
    ),
    "there-is-no-room-for-the-base-model-now": (
        World(ready=(False, False), reports=(NO_ROOM, NO_ROOM)),
        "-NoCapacity",
        "-NoCapacity",
        "+NoCapacity",
        "-NoFault",
    ),
    "one-pod-waits-for-room-and-another-for-a-person": (
        World(ready=(False, False), reports=(NO_ROOM, BROKEN)),
        "-NotAModel",
        "-NotAModel",
        "+NoCapacity",
        "+NotAModel",
    ),
    "the-base-model-is-broken-on-new-pods": (
        World(rollout=replace(ROLLOUT, replicas=3, updated=1), reports=(REPORT, BROKEN), ready=(True, False)),
        "+BaseServed",
        "-NotAModel",
        "-Settled",
        "+NotAModel",
    ),
    "a-new-pod-can-t-serve-what-the-one-that-it-replaces-does": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.UNSAFE_FILE)),
            ready=(True, False),
            templates=("before", "template"),
        ),
        "+BaseServed",
        "-UnsafeFile",
        "-Settled",
        "+UnsafeFile",
    ),
    "a-new-pod-can-t-serve-it-now": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.SOURCE_UNAVAILABLE)),
            ready=(True, False),
            templates=("before", "template"),
        ),
        "+BaseServed",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "a-new-pod-can-t-serve-what-nobody-does": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(
                REPORT.model_copy(update={"adapters": ()}),
                with_adapter(AdapterState.FAILED, ErrorCode.UNSAFE_FILE),
            ),
            ready=(True, False),
            templates=("before", "template"),
        ),
        "+BaseServed",
        "-RollingOut",
        "+RollingOut",
        "+AdaptersFailed",
    ),
    "the-image-of-new-pods-can-t-be-had": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(REPORT, None),
            ready=(True, False),
            trouble="ErrImagePull: not found",
            stuck=(False, True),
        ),
        "+BaseServed",
        "-PodsStuck",
        "-Settled",
        "+PodsStuck",
    ),
    "the-image-of-the-template-before-can-t-be-had-and-the-next-one-loads": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(None, LOADING),
            ready=(False, False),
            templates=("before", "template"),
            stuck=(True, False),
        ),
        "-PodsNotReady",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "time-is-up": (
        World(rollout=replace(ROLLOUT, failure="too slow"), ready=(True, False)),
        "+BaseServed",
        "-ProgressDeadlineExceeded",
        "-Settled",
        "+ProgressDeadlineExceeded",
    ),
    "a-ready-pod-can-t-be-reached": (
        World(reports=(REPORT, None)),
        "+BaseServed",
        "-PodsUnreachable",
        "+AdapterSetPending",
        "-NoFault",
    ),
    "no-ready-pod-can-be-reached": (
        World(reports=(None, None)),
        "-PodsUnreachable",
        "-PodsUnreachable",
        "+AdapterSetPending",
        "-NoFault",
    ),
    "pods-of-this-spec-speak-another-version": (
        World(reports=(None, None), fault=OTHER_VERSION),
        "-PodsUnreachable",
        "-UnsupportedContractVersion",
        "-Settled",
        "+UnsupportedContractVersion",
    ),
    "pods-of-the-spec-before-speak-another-version": (
        World(rollout=replace(ROLLOUT, template_hash="older"), reports=(None, None), fault=OTHER_VERSION),
        "-PodsUnreachable",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "the-last-pod-of-the-template-before-speaks-another-version": (
        World(
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(None, LOADING),
            ready=(True, False),
            templates=("before", "template"),
            fault=OTHER_VERSION,
        ),
        "-PodsUnreachable",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "a-pod-has-an-older-set": (
        World(reports=(REPORT, REPORT.model_copy(update={"adapter_set": AdapterSetVersion(generation=2, hash="x")}))),
        "+BaseServed",
        "-AdapterSetPending",
        "+AdapterSetPending",
        "-NoFault",
    ),
    "an-adapter-loads": (
        World(reports=(REPORT, with_adapter(AdapterState.CHECKING))),
        "+BaseServed",
        "-AdaptersLoading",
        "+AdaptersLoading",
        "-NoFault",
    ),
    "an-adapter-failed": (
        World(reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.RANK_TOO_HIGH))),
        "+BaseServed",
        "-AdaptersFailed",
        "-Settled",
        "+AdaptersFailed",
    ),
    "a-source-does-not-answer": (
        World(reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.SOURCE_UNAVAILABLE))),
        "+BaseServed",
        "-AdaptersLoading",
        "+AdaptersLoading",
        "-NoFault",
    ),
    "there-is-no-room-for-an-adapter-now": (
        World(reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.NO_CAPACITY))),
        "+BaseServed",
        "-AdaptersLoading",
        "+AdaptersLoading",
        "-NoFault",
    ),
    "pinned-adapters-leave-no-place": (
        World(reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.ALL_PLACES_PINNED))),
        "+BaseServed",
        "-AdaptersFailed",
        "-Settled",
        "+AdaptersFailed",
    ),
    "a-pod-has-another-version": (
        World(reports=(REPORT, with_adapter(AdapterState.MOUNTED, digest="sha256:" + "b" * 64))),
        "+BaseServed",
        "-AdaptersLoading",
        "+AdaptersLoading",
        "-NoFault",
    ),
    "the-pool-can-t-be-made": (
        World(failure=Failure("ApplyRejected", "why")),
        "+BaseServed",
        "-ApplyRejected",
        "-Settled",
        "+ApplyRejected",
    ),
    "nothing-is-wanted": (
        World(
            spec={"replicas": 0},
            rollout=replace(ROLLOUT, desired=0, replicas=0, updated=0),
            reports=(),
            ready=(),
        ),
        "-ScaledToZero",
        "-ScaledToZero",
        "-Settled",
        "-NoFault",
    ),
    "the-merge-is-served": (
        World(spec=MERGE, reports=(MERGED, MERGED)),
        "+MergeServed",
        "+AllReady",
        "-Settled",
        "-NoFault",
    ),
    "hot-pods-go-on-until-the-merge-is-there": (
        World(
            spec=MERGE, rollout=replace(ROLLOUT, replicas=3, updated=1), reports=(REPORT, LOADING), ready=(True, False)
        ),
        "-RollingOut",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "the-first-merged-pod-serves": (
        World(spec=MERGE, rollout=replace(ROLLOUT, replicas=3, updated=1), reports=(REPORT, MERGED)),
        "+MergeServed",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "merged-pods-go-on-until-hot-ones-are-there": (
        World(rollout=replace(ROLLOUT, replicas=3, updated=1), reports=(MERGED, LOADING), ready=(True, False)),
        "-RollingOut",
        "-RollingOut",
        "+RollingOut",
        "-NoFault",
    ),
    "the-merge-fails-beside-hot-pods": (
        World(
            spec=MERGE,
            rollout=replace(ROLLOUT, replicas=3, updated=1),
            reports=(REPORT, BROKEN),
            ready=(True, False),
        ),
        "-NotAModel",
        "-NotAModel",
        "-Settled",
        "+NotAModel",
    ),
    "a-pod-has-merged-another-version": (
        World(
            spec=MERGE,
            reports=(
                MERGED,
                MERGED.model_copy(
                    update={"adapters": with_adapter(AdapterState.FAILED, ErrorCode.MERGE_OUTDATED).adapters}
                ),
            ),
        ),
        "+MergeServed",
        "-AdaptersFailed",
        "-Settled",
        "+AdaptersFailed",
    ),
    "it-is-suspended": (
        World(spec={"suspend": True}),
        "+BaseServed",
        "-Suspended",
        "-Suspended",
        "-Suspended",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_the_conditions_of_a_world(name: str) -> None:
    world, *expected = CASES[name]
    status = world.status()
    told = [("+" if found.status == "True" else "-") + found.reason for found in status.conditions]
    assert [found.type for found in status.conditions] == ["Available", "Ready", "Reconciling", "Stalled"]
    assert told == expected
    assert {found.observed_generation for found in status.conditions} == {2} == {status.observed_generation}


def test_an_obstacle_gives_way_to_earlier_ones_only() -> None:
    """Else it could be what is told of Ready where it is no obstacle."""
    checks = [obstacle.check for obstacle in READY]
    assert len(set(checks)) == len(checks)
    for obstacle in READY:
        assert all(checks.index(earlier) < checks.index(obstacle.check) for earlier in obstacle.unless)


def test_counts_and_details() -> None:
    status = World(reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.RANK_TOO_HIGH))).status()
    billing = status.adapters[0]
    assert (billing.ready_replicas, billing.desired_replicas) == (1, 2)
    assert (billing.digest, billing.method, billing.rank) == (DIGEST, "LORA", 8)
    assert (billing.reason, billing.message) == ("RankTooHigh", "why")
    assert (status.adapter_counts.desired, status.adapter_counts.ready, status.adapter_counts.failed) == (1, 0, 1)
    assert (status.replicas, status.ready_replicas) == (2, 2)
    assert (status.selector, status.url) == ("graft.dev/deployment=support", "http://support.team.svc:8000/v1")
    assert [(found.config_hash, found.generation) for found in status.adapter_sets] == [("current", 3)]


def test_what_is_merged_is_told() -> None:
    status = World(spec=MERGE, reports=(MERGED, MERGED)).status()
    assert status.merge == MergeStatus(
        name="both", adapters=(MergedAdapterStatus(name="billing", weight=0.5, digest=DIGEST),)
    )
    assert [condition.message for condition in status.conditions[:2]] == [
        "the merge `both` is served",
        "2 pods, 1 adapter merged as `both`",
    ]
    assert World().status().merge is None


def test_pods_of_another_version_are_named_with_both_versions() -> None:
    (_, ready, _, stalled) = World(reports=(REPORT, None), fault=OTHER_VERSION).status().conditions
    assert ready.message == stalled.message == f"pod-1: {OTHER_VERSION.message}"


def test_the_trouble_of_a_pod_is_quoted() -> None:
    status = World(ready=(True, False), trouble="ErrImagePull: no such image").status()
    assert "pod-1: ErrImagePull: no such image" in status.conditions[1].message


def test_modules_that_moved_are_told() -> None:
    (billing,) = REPORT.adapters
    assert billing.facts is not None
    moved = REPORT.model_copy(
        update={
            "adapters": (
                billing.model_copy(update={"facts": billing.facts.model_copy(update={"remapped": "nothing → model"})}),
            )
        }
    )
    before, after = World().status(), World(reports=(moved, moved)).status()
    assert (before.adapters[0].remapped, after.adapters[0].remapped) == (None, "nothing → model")
    assert after.conditions == before.conditions, "it is no fault"
    (_, _, told) = transitions(AdapterDeploymentStatus(), after)
    assert (told.kind, told.reason) == ("Warning", "AdapterRemapped")
    assert told.message == "adapter `billing` names its modules otherwise than its base model: nothing → model"
    assert told_events(after, after) == []


def test_events_tell_transitions_only() -> None:
    start, ready = World(ready=(False, False), reports=(LOADING, LOADING)).status(), World().status()
    broken = World(ready=(False, False), reports=(BROKEN, BROKEN)).status()
    failed = World(reports=(REPORT, with_adapter(AdapterState.FAILED, ErrorCode.RANK_TOO_HIGH))).status()
    assert told_events(AdapterDeploymentStatus(), ready) == ["Normal Ready", "Normal AdapterReady"]
    assert told_events(start, ready)[0] == "Normal Ready"
    assert told_events(ready, ready) == []
    assert told_events(ready, failed) == ["Warning AdaptersFailed", "Warning RankTooHigh"]
    assert told_events(failed, failed) == []
    assert told_events(ready, broken)[:2] == ["Warning NotAModel", "Warning NotAModel"]


def told_events(before: AdapterDeploymentStatus, after: AdapterDeploymentStatus) -> list[str]:
    return [f"{event.kind} {event.reason}" for event in transitions(before, after)]
