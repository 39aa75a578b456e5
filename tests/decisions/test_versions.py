"""A name never gives up a version that serves for one that does not: what the operator plans, step by step."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graft_operator.decisions.conditions import timestamp
from graft_operator.decisions.observed import Observed, PodReport, ResolvedSource
from graft_operator.resource import MAX_HISTORY
from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.status import RuntimeStatus
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.pools import (
    BILLING,
    NOW,
    adapter,
    carried_out,
    changed,
    plan_of,
    resolved,
    running,
    runtime_status,
    sha,
    spec_of,
    status_of,
    told,
    with_pods,
)

NEW = {**BILLING, "uri": "pvc://shelf/billing-2"}
OLD_DIGEST, NEW_DIGEST = sha(BILLING["uri"]), sha(NEW["uri"])
BAD = Fault(code=ErrorCode.SHAPE_MISMATCH, message="it does not fit\n\nhint: train it on this base")


def moving() -> Observed:
    """Observe a pool whose new version has just been resolved, its set stored and not pushed yet."""
    observed = changed(running(BILLING), spec_of(NEW), resolutions=resolved(NEW))
    return replace(carried_out(observed, plan_of(observed)), resolutions={})


def tried(observed: Observed, *, fault: Fault | None = None, pods: int = 2) -> Observed:
    """Let the first pods have the stored set in force and its wanted version tried."""
    (stored,) = observed.stored_sets.values()
    known = {uid: report.status for uid, report in observed.reports.items()}
    for pod in observed.pods[:pods]:
        known[pod.uid] = told_of(runtime_status(stored, faults={"billing": fault} if fault else None))
    return replace(observed, reports={uid: PodReport(status=status, asked=True) for uid, status in known.items()})


def told_of(status: RuntimeStatus) -> RuntimeStatus:
    reports = tuple(report.model_copy(update={"serving": OLD_DIGEST}) for report in status.adapters)
    return status.model_copy(update={"adapters": reports})


def entry(observed: Observed) -> AdapterEntry:
    """Return the stored entry once the plan is carried out."""
    plan = plan_of(observed)
    current = status_of(plan).adapter_sets[0].config_hash
    (found,) = carried_out(observed, plan).stored_sets[current].adapters
    return found


def test_a_new_version_is_wanted_beside_the_one_that_serves() -> None:
    observed = changed(running(BILLING), spec_of(NEW), resolutions=resolved(NEW))
    assert entry(observed).digest == NEW_DIGEST
    assert entry(observed).serving is not None
    assert entry(observed).answering == entry(running(BILLING)).wanted
    shown = adapter(plan_of(observed), "billing")
    assert (shown.digest, shown.wanted_digest, shown.uri) == (OLD_DIGEST, NEW_DIGEST, BILLING["uri"])
    assert (shown.reason, shown.ready_replicas) == ("Loading", 2), "both pods go on with the old version"
    assert shown.method == "LORA", "and what is known of it stays"


def test_a_set_moves_the_name_once_every_pod_has_tried_the_new_version() -> None:
    assert entry(tried(moving(), pods=1)).serving is not None
    observed = tried(moving())
    plan = plan_of(observed)
    assert (entry(observed).digest, entry(observed).serving) == (NEW_DIGEST, None)
    assert len(plan.pushes) == 2
    assert entry(carried_out(observed, plan)).serving is None, "for good"


def moved(observed: Observed) -> Observed:
    """Let the pods take what the plan wants, and the status be written of it."""
    taken = with_pods(carried_out(observed, plan_of(observed)))
    return carried_out(taken, plan_of(taken))


def test_the_status_names_what_was_served_before_and_a_digest_of_it_goes_back() -> None:
    observed = moved(tried(moving()))
    shown = observed.pool.status.adapters[0]
    assert (shown.digest, [old.digest for old in shown.history]) == (NEW_DIGEST, [OLD_DIGEST])
    assert (shown.history[0].uri, shown.history[0].until) == (BILLING["uri"], timestamp(NOW))
    assert adapter(plan_of(moved(observed)), "billing").history == shown.history, "once"
    back = changed(observed, spec_of({**BILLING, "digest": OLD_DIGEST}))
    assert (entry(back).digest, entry(back).answering) == (OLD_DIGEST, entry(observed).wanted)
    shown = moved(moved(back)).pool.status.adapters[0]
    assert (shown.digest, [old.digest for old in shown.history]) == (OLD_DIGEST, [NEW_DIGEST])


def test_the_history_is_short() -> None:
    observed = running(BILLING)
    for number in range(MAX_HISTORY + 2):
        version = {**BILLING, "uri": f"pvc://shelf/{number}"}
        observed = moved(moved(changed(observed, spec_of(version), resolutions=resolved(version))))
    uris = [old.uri for old in observed.pool.status.adapters[0].history]
    assert uris == [f"pvc://shelf/{MAX_HISTORY - number}" for number in range(MAX_HISTORY)]


def test_a_bad_version_leaves_the_name_to_the_old_one_also_for_pods_that_are_born_later() -> None:
    observed = tried(moving(), fault=BAD)
    plan = plan_of(observed)
    assert plan.mounts == (), "the stored set names both versions already"
    (stored,) = observed.stored_sets.values()
    assert stored.adapters[0].serving is not None
    shown = adapter(plan, "billing")
    assert (shown.digest, shown.wanted_digest, shown.ready_replicas) == (OLD_DIGEST, NEW_DIGEST, 2)
    assert shown.reason == "ShapeMismatch"
    assert shown.message == f"it does not fit; {OLD_DIGEST} goes on answering\n\nhint: train it on this base"
    assert told(plan)["Stalled"] == ("True", "AdaptersFailed")
    assert told(plan)["Available"][0] == "True"


def test_the_third_version_takes_over_from_the_first_when_the_second_was_bad() -> None:
    third = {**BILLING, "uri": "pvc://shelf/billing-3"}
    observed = changed(tried(moving(), fault=BAD), spec_of(third), resolutions=resolved(third))
    assert entry(observed).digest == sha(third["uri"])
    assert entry(observed).serving is not None
    assert entry(observed).serving == entry(moving()).serving


def test_going_back_to_the_old_version_needs_no_other_set() -> None:
    observed = changed(tried(moving(), fault=BAD), spec_of(BILLING), resolutions=resolved(BILLING))
    assert (entry(observed).digest, entry(observed).serving) == (OLD_DIGEST, None)
    assert adapter(plan_of(observed), "billing").wanted_digest is None


def test_a_version_that_never_served_holds_nothing_up() -> None:
    """The first one was bad: there is nothing to go on with."""
    observed = running(BILLING)
    (stored,) = observed.stored_sets.values()
    failed = {pod.uid: PodReport(runtime_status(stored, faults={"billing": BAD}), asked=True) for pod in observed.pods}
    unserved = replace(observed, reports=failed, pool=replace(observed.pool, status=unserved_status(observed)))
    observed = changed(unserved, spec_of(NEW), resolutions=resolved(NEW))
    assert (entry(observed).digest, entry(observed).serving) == (NEW_DIGEST, None)


def unserved_status(observed: Observed) -> Any:
    status = observed.pool.status
    shown = tuple(one.model_copy(update={"digest": None, "wanted_digest": OLD_DIGEST}) for one in status.adapters)
    return status.model_copy(update={"adapters": shown})


def test_a_pod_that_can_t_be_reached_holds_no_version_up() -> None:
    observed = tried(moving(), pods=1)
    silent = observed.pods[1].uid
    known = {**observed.reports, silent: replace(observed.reports[silent], unreachable="timed out")}
    assert entry(replace(observed, reports=known)).serving is None


def test_what_served_is_remembered_while_no_pod_tells_of_it() -> None:
    """All pods are being replaced, the operator is a new one: the status says what served."""
    silent = replace(running(BILLING), pods=(), reports={})
    observed = changed(silent, spec_of(NEW), resolutions=resolved(NEW))
    assert entry(observed).serving is not None
    assert adapter(plan_of(observed), "billing").digest == OLD_DIGEST


def test_another_scale_is_another_version() -> None:
    observed = changed(running(BILLING), spec_of({**BILLING, "scale": 0.5}))
    served = entry(observed).serving
    assert served is not None
    assert (entry(observed).scale, served.scale, entry(observed).digest == served.digest) == (0.5, 1.0, True)


def test_a_version_of_a_source_that_was_withdrawn_does_not_live_on() -> None:
    other = {**BILLING, "uri": "pvc://library/billing"}
    sources = [{"name": "library", "claimName": "library"}]
    base = {"name": "base", "uri": "pvc://library/base"}
    spec = {**spec_of(other), "sources": sources, "baseModel": base}
    assert entry(changed(running(BILLING), spec, resolutions=resolved(other))).serving is None


@pytest.mark.parametrize("code", [ErrorCode.CORRUPT, ErrorCode.RANK_TOO_HIGH, ErrorCode.DIGEST_MISMATCH])
def test_a_source_is_looked_at_again_while_what_it_held_is_bad(code: ErrorCode) -> None:
    source = Source(uri=NEW["uri"])
    observed = tried(moving(), fault=Fault(code=code, message="bad"))
    plan = plan_of(observed)
    assert [resolve.source for resolve in plan.resolves] == [source]
    assert plan.remembered == frozenset({source})
    same = ResolvedSource(digest=NEW_DIGEST, retry_at=NOW + 8)
    waiting = plan_of(replace(observed, resolutions={source: same}))
    assert (waiting.resolves, waiting.mounts, waiting.requeue_after) == ((), (), 8)
    assert adapter(waiting, "billing").reason == code
    corrected = replace(observed, resolutions={source: ResolvedSource(digest=sha("corrected"))})
    assert entry(corrected).digest == sha("corrected")
    assert entry(corrected).answering == entry(moving()).serving


def test_nobody_looks_again_for_a_digest_that_the_spec_names() -> None:
    pinned = {**NEW, "digest": NEW_DIGEST}
    observed = changed(running(BILLING), spec_of(pinned))
    observed = tried(carried_out(observed, plan_of(observed)), fault=BAD)
    assert plan_of(observed).resolves == ()


def test_a_fault_that_passes_is_no_reason_to_look_again() -> None:
    away = Fault(code=ErrorCode.SOURCE_UNAVAILABLE, message="away")
    observed = tried(moving(), fault=away)
    assert plan_of(observed).resolves == ()


CHECK = {"prompt": "2 + 2 =", "contains": "4"}
CHECKED = {**BILLING, "check": CHECK}
NOT_PASSED = Fault(code=ErrorCode.CHECK_FAILED, message="adapter `billing` answers its check with 'five'")


def other_check(**check: Any) -> Observed:
    """Observe a pool whose adapter has got a check, and nothing else; its set is stored and not pushed yet."""
    observed = changed(running(BILLING), spec_of({**BILLING, "check": {**CHECK, **check}}))
    return carried_out(observed, plan_of(observed))


def test_another_check_of_the_version_that_serves_is_tried_beside_it() -> None:
    new = entry(other_check())
    assert new.check is not None
    assert new.serving == entry(running(BILLING)).wanted
    assert (new.digest, new.answering) == (OLD_DIGEST, new.serving)
    passed = tried(other_check())
    assert (entry(passed).serving, entry(passed).check) == (None, new.check)
    assert entry(carried_out(passed, plan_of(passed))).serving is None, "for good"


def test_a_version_that_serves_stays_when_it_does_not_pass_a_check_that_was_written_later() -> None:
    failed = tried(other_check(), fault=NOT_PASSED)
    shown = adapter(plan_of(failed), "billing")
    assert (shown.digest, shown.wanted_digest, shown.ready_replicas) == (OLD_DIGEST, OLD_DIGEST, 2)
    assert (shown.reason, told(plan_of(failed))["Stalled"]) == ("CheckFailed", ("True", "AdaptersFailed"))
    corrected = changed(failed, spec_of({**BILLING, "check": {**CHECK, "contains": "five"}}))
    assert entry(corrected).serving == entry(failed).serving
    without = changed(failed, spec_of(BILLING))
    assert (entry(without).check, entry(without).serving) == (None, None)


def test_a_check_that_is_taken_away_needs_no_trial() -> None:
    observed = changed(running(CHECKED), spec_of(BILLING))
    assert (entry(observed).check, entry(observed).serving) == (None, None)
