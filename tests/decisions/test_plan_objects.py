"""What the operator decides about the objects of a pool: an observation in, a plan out. Milliseconds, no cluster."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from graft_operator import objects
from graft_operator.decisions.fingerprint import short_hash
from graft_operator.decisions.observed import (
    Child,
    Failure,
    Observed,
    applied_hash,
)
from graft_operator.decisions.plan import RECHECK_SECONDS, Plan, make_plan
from graft_operator.objects import config_maps
from graft_runtime.contract.config import RuntimeConfig

from tests.support.pools import (
    BILLING,
    NOW,
    SETTINGS,
    SQL,
    changed,
    condition,
    current_set,
    fresh,
    plan_of,
    resolved,
    running,
    spec_of,
    status_of,
    told,
)


def test_a_new_pool_gets_all_its_objects_and_the_pods_come_last() -> None:
    plan = plan_of(fresh(spec_of(BILLING)))
    assert plan.mounts[0].key == ("ConfigMap", "support-keys")
    assert [apply.body["kind"] for apply in plan.workload] == [
        "Service",
        "PodDisruptionBudget",
        "NetworkPolicy",
        "Deployment",
    ]
    assert all(apply.uid is None for apply in (*plan.mounts, *plan.workload))
    assert current_set(plan).generation == 1


def test_what_is_as_wanted_is_not_written_again() -> None:
    plan = plan_of(running(BILLING))
    assert (plan.mounts, plan.workload, plan.pushes, plan.deletes, plan.resolves) == ((), (), (), (), ())
    assert plan.transitions == ()
    assert plan.requeue_after == RECHECK_SECONDS


def test_the_runtime_config_is_built_once_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    built: list[RuntimeConfig] = []

    def build(**fields: Any) -> RuntimeConfig:
        built.append(RuntimeConfig(**fields))
        return built[-1]

    monkeypatch.setattr(config_maps, "RuntimeConfig", build)
    plan_of(fresh(spec_of(BILLING)))
    assert len(built) == 1


def test_a_pass_that_finds_nothing_new_tells_the_same_status() -> None:
    observed = running(BILLING)
    assert status_of(make_plan(observed, SETTINGS, NOW + 1000)) == observed.pool.status


@pytest.mark.parametrize("kind", ["Service", "Deployment", "NetworkPolicy", "PodDisruptionBudget"])
def test_drift_is_repaired(kind: str) -> None:
    observed = running(BILLING)
    touched = tuple(replace(child, fingerprint="other") if child.kind == kind else child for child in observed.children)
    plan = plan_of(replace(observed, children=touched))
    assert [apply.body["kind"] for apply in plan.workload] == [kind]
    assert plan.workload[0].uid is not None


def restarted(observed: Observed) -> Observed:
    """What the next operator sees: the status tells of the last applies, and nothing is remembered."""
    status = observed.pool.status.model_copy(update={"applied_hash": applied_hash(observed.applied)})
    return replace(observed, pool=replace(observed.pool, status=status), applied={})


def test_the_next_operator_writes_nothing_where_all_is_as_the_status_vouches() -> None:
    observed = running(BILLING)
    plan = plan_of(restarted(observed))
    assert (plan.mounts, plan.workload, plan.deletes) == ((), (), ())
    assert plan.applied == observed.applied
    assert status_of(plan) == restarted(observed).pool.status


@pytest.mark.parametrize(
    "touch",
    [
        pytest.param(lambda child: replace(child, fingerprint="other"), id="edited"),
        pytest.param(lambda child: None, id="deleted"),
        pytest.param(lambda child: replace(child, owner_uid="other"), id="another owner's"),
    ],
)
@pytest.mark.parametrize("kind", ["Service", "Deployment", "NetworkPolicy", "ConfigMap"])
def test_the_next_operator_repairs_what_drifted_while_none_ran(
    kind: str, touch: Callable[[Child], Child | None]
) -> None:
    observed = restarted(running(BILLING))
    first = next(child for child in observed.children if child.kind == kind)
    others = [child for child in observed.children if child is not first]
    touched = touch(first)
    plan = plan_of(replace(observed, children=(*others, *([] if touched is None else [touched]))))
    assert (first.kind, first.name) in [apply.key for apply in (*plan.mounts, *plan.workload)]
    assert not plan.applied


def test_the_next_operator_applies_what_another_version_wants_otherwise() -> None:
    observed = restarted(running(BILLING))
    plan = make_plan(observed, replace(SETTINGS, runtime_image="runtime:2"), NOW)
    assert ("Deployment", "support") in [apply.key for apply in plan.workload]


def test_a_status_without_a_hash_vouches_for_nothing() -> None:
    plan = plan_of(replace(running(BILLING), applied={}))
    assert len(plan.mounts) + len(plan.workload) == 7


def test_an_object_of_another_owner_is_no_child_of_ours() -> None:
    observed = running(BILLING)
    foreign = tuple(
        replace(child, owner_uid="other") if child.kind == "Service" else child for child in observed.children
    )
    plan = plan_of(replace(observed, children=foreign))
    assert [(apply.key, apply.uid) for apply in plan.workload] == [(("Service", "support"), None)]


def test_zero_replicas_need_no_disruption_budget() -> None:
    observed = changed(running(BILLING), spec_of(BILLING, replicas=0))
    plan = plan_of(observed)
    assert [child.kind for child in plan.deletes] == ["PodDisruptionBudget"]
    assert told(plan)["Ready"] == ("False", "ScaledToZero")
    assert told(plan)["Available"] == ("False", "ScaledToZero")


def test_a_pool_that_is_being_deleted_is_left_alone() -> None:
    observed = running(BILLING)
    assert plan_of(replace(observed, pool=replace(observed.pool, deleting=True))) == Plan()


def test_a_suspended_pool_is_told_of_and_not_touched() -> None:
    observed = changed(running(BILLING), spec_of(BILLING, SQL, suspend=True))
    plan = plan_of(observed)
    assert (plan.mounts, plan.workload, plan.pushes, plan.deletes, plan.resolves) == ((), (), (), (), ())
    assert told(plan) == {
        "Available": ("True", "BaseServed"),
        "Ready": ("False", "Suspended"),
        "Reconciling": ("False", "Suspended"),
        "Stalled": ("False", "Suspended"),
    }


# Faults of the pool


def test_a_spec_that_this_operator_can_t_read_changes_nothing() -> None:
    observed = changed(running(BILLING), {"replicas": 2, "baseModel": {"uri": "gopher://x/y"}})
    plan = plan_of(observed)
    assert (plan.mounts, plan.workload, plan.pushes, plan.deletes) == ((), (), (), ())
    assert told(plan)["Stalled"] == ("True", "InvalidSpec")
    assert told(plan)["Available"] == ("True", "BaseServed")
    assert "spec.baseModel.uri" in condition(plan, "Ready").message
    assert status_of(plan).adapters == observed.pool.status.adapters


def test_a_pod_template_that_is_refused_leaves_the_pods_alone_and_adapters_hot() -> None:
    template = {"spec": {"containers": [{"name": "runtime", "env": "x"}]}}
    wanted = spec_of(BILLING, SQL, podTemplate=template, engine={"maxRank": 8})
    observed = changed(running(BILLING), wanted, resolutions=resolved(SQL))
    plan = plan_of(observed)
    assert told(plan)["Stalled"] == ("True", "InvalidPodTemplate")
    assert plan.workload == ()
    assert current_set(plan).config_hash in observed.stored_sets, "the set of the pods that run"
    assert len(plan.pushes) == 2


def test_a_template_that_the_api_server_refused_is_not_applied() -> None:
    wanted = spec_of(BILLING, podTemplate={"spec": {"nodeSelector": {"a": "b"}}})
    observed = changed(running(BILLING), wanted)
    deployment = plan_of(observed).workload[-1]
    assert deployment.dry_run_first
    template = deployment.body["metadata"]["annotations"][objects.TEMPLATE_HASH_ANNOTATION]
    refused = plan_of(replace(observed, rejected={template: "the text of the API server"}))
    assert refused.workload == ()
    assert told(refused)["Ready"] == ("False", "InvalidPodTemplate")
    assert condition(refused, "Stalled").message == "the text of the API server"


def test_an_effect_that_failed_is_told_and_nothing_else_is_done() -> None:
    failure = Failure("ForeignObject", "Service support exists already")
    plan = plan_of(replace(fresh(spec_of(BILLING)), failure=failure))
    assert (plan.mounts, plan.workload, plan.pushes) == ((), (), ())
    assert told(plan)["Stalled"] == ("True", "ForeignObject")
    assert [(event.kind, event.reason) for event in plan.transitions] == [("Warning", "ForeignObject")]
    assert plan.requeue_after < RECHECK_SECONDS


def test_the_desired_objects_hash_the_same_each_time() -> None:
    first, second = plan_of(fresh(spec_of(BILLING))), plan_of(fresh(spec_of(BILLING)))
    assert [apply.desired for apply in first.mounts] == [short_hash(apply.body) for apply in second.mounts]
