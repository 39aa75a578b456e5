"""What the operator decides about adapter sets: an observation in, a plan out. Milliseconds, no cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from graft_operator import objects
from graft_operator.decisions.observed import (
    PodReport,
    ResolvedSource,
)
from graft_operator.decisions.plan import make_plan, plan_pool
from graft_operator.decisions.wanted_adapters import WantedAdapter, inline_adapters
from graft_operator.keys import ObjectKey
from graft_runtime.contract.adapter_set import AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

from tests.support.pools import (
    BILLING,
    NOW,
    SETTINGS,
    SQL,
    adapter,
    carried_out,
    changed,
    current_set,
    fresh,
    plan_of,
    pool_of,
    resolved,
    running,
    runtime_status,
    sha,
    spec_of,
    status_of,
    told,
    with_pods,
)


def test_an_unknown_digest_is_asked_of_one_pod_and_the_entry_waits_for_it() -> None:
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))), ready=False)
    plan = plan_of(observed)
    assert [(resolve.pods[0].name, resolve.source.uri) for resolve in plan.resolves] == [("support-0", BILLING["uri"])]
    assert observed.stored_sets[next(iter(observed.stored_sets))].adapters[0].digest is None
    assert adapter(plan, "billing").reason == "Resolving"
    assert told(plan)["Stalled"] == ("False", "NoFault")


def test_a_pod_of_the_current_template_is_asked_before_others() -> None:
    """It alone has the networks, mounts and variables of today."""
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))))
    old, new = observed.pods
    mixed = replace(observed, pods=(replace(old, template_hash="before"), replace(new, ready=False)))
    assert [resolve.pods[0].name for resolve in plan_of(mixed).resolves] == [new.name]


def test_a_source_that_can_t_be_resolved_tells_the_pods_why_so_that_none_waits_for_it() -> None:
    fault = Fault(code=ErrorCode.NOT_FOUND, message="pvc://shelf/billing holds nothing")
    answers = {Source(uri=BILLING["uri"]): ResolvedSource(fault=fault, retry_at=NOW + 20)}
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))), ready=False)
    plan = plan_of(replace(observed, resolutions=answers))
    assert (current_set(plan).generation, current_set(plan).adapters[0].fault) == (2, fault)
    assert len(plan.pushes) == 2
    known = carried_out(observed, plan)
    assert current_set(plan) in known.stored_sets.values()
    assert plan_of(known).mounts == (), "the next operator keeps what is written until it has an answer"
    assert adapter(plan_of(replace(known, resolutions={})), "billing").reason == "NotFound"


def test_a_source_that_is_only_away_keeps_the_pods_waiting() -> None:
    fault = Fault(code=ErrorCode.SOURCE_UNAVAILABLE, message="pvc://shelf/billing can't be read")
    answers = {Source(uri=BILLING["uri"]): ResolvedSource(fault=fault, retry_at=NOW + 20)}
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))), ready=False)
    assert plan_of(replace(observed, resolutions=answers)).mounts == ()


def test_the_answer_is_stored_and_pushed_to_every_pod() -> None:
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))))
    plan = plan_of(replace(observed, resolutions=resolved(BILLING)))
    wanted = current_set(plan)
    assert (wanted.generation, wanted.adapters[0].digest) == (2, sha(BILLING["uri"]))
    assert [(push.pod.uid, push.adapter_set) for push in plan.pushes] == [("pod-0", wanted), ("pod-1", wanted)]
    assert plan.mounts[0].resource_version == "7"


def test_a_recorded_digest_is_not_resolved_again() -> None:
    plan = plan_of(running(BILLING))
    assert plan.resolves == ()
    assert plan.remembered == frozenset()


def test_a_digest_survives_the_loss_of_the_set_in_the_status() -> None:
    observed = running(BILLING)
    left = tuple(child for child in observed.children if child.adapter_set is None)
    plan = plan_of(replace(observed, children=left))
    assert current_set(plan).adapters[0].digest == sha(BILLING["uri"])
    assert current_set(plan).generation == 2, "generations only grow, also where the ConfigMap is gone"


def test_a_digest_in_the_spec_needs_no_resolution() -> None:
    pinned = {**BILLING, "digest": sha("pinned")}
    plan = plan_of(fresh(spec_of(pinned)))
    assert current_set(plan).adapters[0].digest == sha("pinned")
    assert plan.resolves == ()


def test_a_removed_adapter_leaves_the_set() -> None:
    plan = plan_of(changed(running(BILLING, SQL), spec_of(SQL)))
    assert [entry.name for entry in current_set(plan).adapters] == ["sql"]
    assert len(plan.pushes) == 2
    assert [(event.reason, event.kind) for event in plan.transitions] == [("AdapterRemoved", "Normal")]


def test_adapters_touch_no_pod() -> None:
    plan = plan_of(changed(running(BILLING), spec_of(BILLING, SQL)))
    assert plan.workload == ()


def test_a_new_source_takes_over_only_once_its_digest_is_known() -> None:
    moved = {**BILLING, "uri": "pvc://shelf/billing-2"}
    observed = changed(running(BILLING), spec_of(moved))
    waiting = plan_of(observed)
    assert waiting.mounts == ()
    assert [resolve.source.uri for resolve in waiting.resolves] == [moved["uri"]]
    assert (adapter(waiting, "billing").reason, adapter(waiting, "billing").uri) == ("Resolving", BILLING["uri"])
    assert told(waiting)["Ready"][0] == "False"
    switched = plan_of(replace(observed, resolutions=resolved(moved)))
    assert current_set(switched).adapters[0].digest == sha(moved["uri"])


def test_a_new_source_that_can_t_be_had_leaves_the_old_one_serving() -> None:
    moved = {**BILLING, "uri": "pvc://shelf/gone"}
    fault = Fault(code=ErrorCode.NOT_FOUND, message="pvc://shelf/gone holds nothing")
    answers = {Source(uri=moved["uri"]): ResolvedSource(fault=fault, retry_at=NOW + 20)}
    plan = plan_of(changed(running(BILLING), spec_of(moved), resolutions=answers))
    assert (plan.mounts, plan.pushes, plan.resolves) == ((), (), ())
    assert (adapter(plan, "billing").reason, adapter(plan, "billing").ready_replicas) == ("NotFound", 2)
    assert told(plan)["Stalled"] == ("True", "AdaptersFailed")
    assert plan.requeue_after == 20


def test_an_adapter_outside_the_sources_stays_out_and_blocks_no_other() -> None:
    stray = {"name": "stray", "uri": "pvc://elsewhere/x"}
    plan = plan_of(changed(running(BILLING), spec_of(BILLING, stray, SQL), resolutions=resolved(SQL)))
    assert [entry.name for entry in current_set(plan).adapters] == ["billing", "sql"]
    assert adapter(plan, "stray").reason == "SourceNotDeclared"
    assert "add to spec.sources" in (adapter(plan, "stray").message or "")


def test_a_scheme_that_the_administrator_does_not_allow_stays_out() -> None:
    narrow = replace(SETTINGS, allowed_schemes=("pvc",))
    sources = [{"name": "shelf", "claimName": "shelf"}, {"name": "disk", "mountPath": "/mnt/disk"}]
    stray = {"name": "stray", "uri": "file:///mnt/disk/x"}
    plan = make_plan(fresh(spec_of(BILLING, stray, sources=sources)), narrow, NOW)
    assert adapter(plan, "stray").reason == "SourceNotDeclared"
    assert "administrator allows pvc" in (adapter(plan, "stray").message or "")


@pytest.mark.parametrize(
    ("version", "generation"),
    [
        pytest.param(AdapterSetVersion(generation=9, hash="sha256:x"), 10, id="a-pod-has-a-newer-one"),
        pytest.param(AdapterSetVersion(generation=1, hash="sha256:x"), 2, id="a-pod-has-another-one-of-that-number"),
        pytest.param(AdapterSetVersion(generation=0), None, id="a-pod-has-none-yet"),
    ],
)
def test_a_generation_is_above_everything_that_is_known(version: AdapterSetVersion, generation: int | None) -> None:
    observed = with_pods(running(BILLING), version=version)
    plan = plan_of(observed)
    stored = next(iter(observed.stored_sets.values()))
    if generation is None:
        assert plan.mounts == ()
        assert {push.adapter_set for push in plan.pushes} == {stored}
    else:
        assert current_set(plan).generation == generation
        assert {push.adapter_set.generation for push in plan.pushes} == {generation}


def test_pods_of_an_earlier_configuration_keep_their_set_but_for_what_left_the_spec() -> None:
    observed = changed(running(BILLING, SQL), spec_of(SQL, {**BILLING, "name": "new"}, engine={"maxRank": 8}))
    old = next(iter(observed.stored_sets))
    plan = plan_of(observed)
    sets = [objects.read_adapter_set(apply.body) for apply in plan.mounts if "binaryData" in apply.body]
    names = {found.config_hash == old: [entry.name for entry in found.adapters] for found in sets if found}
    assert names == {True: ["sql"], False: ["sql", "new"]}
    assert all(push.adapter_set.config_hash == old for push in plan.pushes)
    assert told(plan)["Ready"] == ("False", "RollingOut")


def test_digests_move_to_the_next_configuration() -> None:
    plan = plan_of(changed(running(BILLING), spec_of(BILLING, engine={"maxRank": 8})))
    assert current_set(plan).adapters[0].digest == sha(BILLING["uri"])


def test_what_no_pod_runs_with_any_more_is_deleted() -> None:
    before = running(BILLING)
    old = next(iter(before.stored_sets))
    rolling = changed(before, spec_of(BILLING, engine={"maxRank": 8}))
    rolling = carried_out(rolling, plan_of(rolling))
    assert plan_of(rolling).deletes == (), "pods of it may still be made"
    done = with_pods(rolling)
    assert {child.name for child in plan_of(done).deletes} == {f"support-config-{old}", f"support-set-{old}"}


def test_a_wrong_digest_that_left_the_spec_does_not_live_on() -> None:
    wrong = {**BILLING, "digest": sha("wrong")}
    fault = Fault(code=ErrorCode.DIGEST_MISMATCH, message="other bytes")
    observed = with_pods(running(wrong), faults={"billing": fault})
    assert adapter(plan_of(observed), "billing").reason == "DigestMismatch"
    plan = plan_of(changed(observed, spec_of(BILLING)))
    assert [resolve.source.uri for resolve in plan.resolves] == [BILLING["uri"]]
    healed = plan_of(changed(observed, spec_of(BILLING), resolutions=resolved(BILLING)))
    assert current_set(healed).adapters[0].digest == sha(BILLING["uri"])


def test_a_pod_of_another_pool_is_neither_asked_nor_pushed_to() -> None:
    observed = running(BILLING)
    stray = PodReport(
        status=runtime_status(next(iter(observed.stored_sets.values()))).model_copy(update={"pool_uid": "other"}),
        asked=True,
    )
    plan = plan_of(changed(replace(observed, reports={"pod-0": stray}), spec_of(BILLING, SQL)))
    assert (plan.pushes, plan.resolves) == ((), ())


# Adapters that others ask for


def test_an_adapter_of_another_owner_is_planned_like_one_of_the_spec() -> None:
    observed = running(BILLING)
    pool = pool_of(observed.pool)
    source = Source(uri=SQL["uri"])
    owner = ObjectKey("Toy", "team", "spinning-top")
    guest = WantedAdapter("sql", source, digest=None, scale=2.0, pinned=True, share=1, owner=owner)
    answered = replace(observed, resolutions=resolved(SQL))
    plan = plan_pool(pool, (*inline_adapters(pool), guest), answered, SETTINGS, NOW)
    entry = current_set(plan).adapters[1]
    assert (entry.name, entry.source, entry.digest, entry.scale, entry.pinned) == (
        "sql",
        source,
        sha(SQL["uri"]),
        2.0,
        True,
    )
    assert status_of(plan).adapter_counts.desired == 2
    assert len(plan.pushes) == 2
    assert plan.remembered == frozenset({source})
    gone = plan_pool(pool, inline_adapters(pool), carried_out(answered, plan), SETTINGS, NOW)
    assert [entry.name for entry in current_set(gone).adapters] == ["billing"]


def test_a_pass_unpacks_a_stored_set_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A set may hold megabytes."""
    seen: list[dict[str, Any]] = []

    def read(body: dict[str, Any]) -> Any:
        seen.append(body)
        return objects.read_adapter_set(body)

    monkeypatch.setattr("graft_operator.decisions.observed.read_adapter_set", read)
    started = running(BILLING, SQL)
    seen.clear()
    plan_of(replace(started))
    assert len([body for body in seen if body["binaryData"]]) == 1
