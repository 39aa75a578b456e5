"""What the operator decides, as tables: an observation in, a plan out. Milliseconds, no cluster."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from graft_operator import objects
from graft_operator.decisions.adapter_sets import stored_sets
from graft_operator.decisions.fingerprint import short_hash
from graft_operator.decisions.observed import (
    Applied,
    Child,
    Failure,
    Observed,
    PodReport,
    PodView,
    PoolView,
    ResolvedSource,
    Rollout,
    applied_hash,
)
from graft_operator.decisions.plan import RECHECK_SECONDS, Plan, make_plan, plan_pool
from graft_operator.decisions.readers import read_child
from graft_operator.decisions.wanted_adapters import WantedAdapter, inline_adapters
from graft_operator.keys import ObjectKey
from graft_operator.objects import KubernetesObject, Pool, config_maps
from graft_operator.resource import AdapterDeploymentStatus, AdapterStatus, Condition, parse_spec
from graft_operator.settings import Settings
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import Merge, MergePart, RuntimeConfig
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport, AdapterState, BaseReport, BaseState, RuntimeStatus
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode

SETTINGS = Settings(namespace="graft-system", runtime_image="runtime:1", allowed_schemes=("pvc", "file"))
KEYS = {"0123456789abcdef": "PEM"}
NOW = 1_800_000_000.0
UID = "pool-uid"
BILLING = {"name": "billing", "uri": "pvc://shelf/billing"}
SQL = {"name": "sql", "uri": "pvc://shelf/sql"}


def spec_of(*adapters: dict[str, Any], **more: Any) -> dict[str, Any]:
    return {
        "replicas": 2,
        "baseModel": {"name": "base", "uri": "pvc://shelf/base"},
        "sources": [{"name": "shelf", "claimName": "shelf"}],
        "adapters": list(adapters),
        **more,
    }


def sha(text: str) -> str:
    return "sha256:" + hashlib.sha256(text.encode()).hexdigest()


def resolved(*adapters: dict[str, Any]) -> dict[Source, ResolvedSource]:
    return {Source(uri=adapter["uri"]): ResolvedSource(digest=sha(adapter["uri"])) for adapter in adapters}


def view_of(spec: dict[str, Any], generation: int = 1, status: AdapterDeploymentStatus | None = None) -> PoolView:
    return PoolView("team", "support", UID, generation, spec, status or AdapterDeploymentStatus())


def pool_of(view: PoolView) -> Pool:
    return Pool(view.namespace, view.name, view.uid, view.generation, parse_spec(view.spec))


def fresh(spec: dict[str, Any], **more: Any) -> Observed:
    """Nothing was made yet."""
    return Observed(view_of(spec), keys=KEYS, **more)


def carried_out(observed: Observed, plan: Plan) -> Observed:
    """The same world after the API server took what the plan applies."""
    children = {(child.kind, child.name): child for child in observed.children}
    applied = dict(observed.applied)
    for number, apply in enumerate((*plan.mounts, *plan.workload)):
        child = child_of(apply.body, number)
        children[apply.key] = child
        applied[apply.key] = Applied(apply.desired, child.fingerprint)
    status = plan.statuses.get(observed.pool.key, observed.pool.status)
    return replace(
        observed,
        pool=replace(observed.pool, status=status),
        children=tuple(children.values()),
        applied=applied,
    )


def child_of(body: KubernetesObject, number: int = 0) -> Child:
    metadata = {**body["metadata"], "uid": f"uid-{number}", "resourceVersion": "7", "generation": 1}
    return read_child(body["kind"], {**body, "metadata": metadata})


def with_pods(observed: Observed, *, ready: bool = True, **report: Any) -> Observed:
    """The Deployment has made all its pods, and each has the stored set and every adapter of it mounted."""
    deployment = observed.own("Deployment", "support")
    assert deployment is not None
    assert deployment.rollout is not None
    rollout = settled(deployment.rollout)
    children = tuple(
        replace(child, rollout=rollout) if child.kind == "Deployment" else child for child in observed.children
    )
    pods = tuple(
        PodView(
            f"support-{number}",
            f"pod-{number}",
            f"10.0.0.{number}",
            rollout.config_hash,
            ready,
            rollout.pod_template_hash,
        )
        for number in range(rollout.desired)
    )
    adapter_set = stored_sets(observed)[rollout.config_hash]
    reports = {pod.uid: PodReport(status=runtime_status(adapter_set, **report), asked=True) for pod in pods}
    return replace(observed, children=children, pods=pods, reports=reports)


def settled(rollout: Rollout) -> Rollout:
    return replace(
        rollout,
        observed_generation=rollout.generation,
        replicas=rollout.desired,
        updated=rollout.desired,
    )


def runtime_status(
    adapter_set: AdapterSet,
    *,
    base: BaseState = BaseState.SERVING,
    base_fault: Fault | None = None,
    version: AdapterSetVersion | None = None,
    faults: dict[str, Fault] | None = None,
) -> RuntimeStatus:
    faults = faults or {}
    return RuntimeStatus(
        boot_id="boot",
        sequence=1,
        pool_uid=UID,
        config_hash=adapter_set.config_hash,
        ready=True,
        base=BaseReport(name="base", state=base, fault=base_fault, digest=sha("base"), runner="padded"),
        adapter_set=version or AdapterSetVersion(generation=adapter_set.generation, hash=adapter_set.content_hash()),
        adapters=tuple(
            AdapterReport(
                name=entry.name,
                digest=entry.digest,
                state=AdapterState.FAILED if entry.name in faults else AdapterState.MOUNTED,
                fault=faults.get(entry.name),
                facts=AdapterFacts(method="LORA", rank=8, module_count=1, deltas=["LowRank"]),
            )
            for entry in adapter_set.adapters
        ),
    )


def running(*adapters: dict[str, Any], **more: Any) -> Observed:
    """A pool on which everything is ready, its status written."""
    observed = fresh(spec_of(*adapters, **more), resolutions=resolved(*adapters))
    observed = with_pods(carried_out(observed, plan_of(observed)))
    return replace(carried_out(observed, plan_of(observed)), resolutions={})


def changed(observed: Observed, spec: dict[str, Any], **more: Any) -> Observed:
    """The spec was replaced."""
    view = replace(observed.pool, spec=spec, generation=observed.pool.generation + 1)
    return replace(observed, pool=view, **more)


def plan_of(observed: Observed) -> Plan:
    return make_plan(observed, SETTINGS, NOW)


def status_of(plan: Plan) -> AdapterDeploymentStatus:
    """What the plan writes as the status of the pool."""
    return plan.statuses[ObjectKey("AdapterDeployment", "team", "support")]


def condition(plan: Plan, kind: str) -> Condition:
    return next(found for found in status_of(plan).conditions if found.type == kind)


def told(plan: Plan) -> dict[str, tuple[str, str]]:
    """Condition → status and reason."""
    return {found.type: (found.status, found.reason) for found in status_of(plan).conditions}


def adapter(plan: Plan, name: str) -> AdapterStatus:
    return next(found for found in status_of(plan).adapters if found.name == name)


def current_set(plan: Plan) -> AdapterSet:
    """The one adapter set that the plan stores."""
    bodies = [apply.body for apply in plan.mounts if "binaryData" in apply.body]
    assert len(bodies) == 1
    found = objects.read_adapter_set(bodies[0])
    assert found is not None
    return found


# What is made


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


# Adapter sets


def test_an_unknown_digest_is_asked_of_one_pod_and_the_entry_waits_for_it() -> None:
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))), ready=False)
    plan = plan_of(observed)
    assert [(resolve.pod.name, resolve.source.uri) for resolve in plan.resolves] == [("support-0", BILLING["uri"])]
    assert stored_sets(observed)[next(iter(stored_sets(observed)))].adapters[0].digest is None
    assert adapter(plan, "billing").reason == "Resolving"
    assert told(plan)["Stalled"] == ("False", "NoFault")


def test_a_pod_of_the_current_template_is_asked_before_others() -> None:
    """It alone has the networks, mounts and variables of today."""
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))))
    old, new = observed.pods
    mixed = replace(observed, pods=(replace(old, template_hash="before"), replace(new, ready=False)))
    assert [resolve.pod.name for resolve in plan_of(mixed).resolves] == [new.name]


def test_a_source_that_can_t_be_resolved_tells_the_pods_why_so_that_none_waits_for_it() -> None:
    fault = Fault(code=ErrorCode.NOT_FOUND, message="pvc://shelf/billing holds nothing")
    answers = {Source(uri=BILLING["uri"]): ResolvedSource(fault=fault, retry_at=NOW + 20)}
    observed = with_pods(carried_out(fresh(spec_of(BILLING)), plan_of(fresh(spec_of(BILLING)))), ready=False)
    plan = plan_of(replace(observed, resolutions=answers))
    assert (current_set(plan).generation, current_set(plan).adapters[0].fault) == (2, fault)
    assert len(plan.pushes) == 2
    known = carried_out(observed, plan)
    assert current_set(plan) in stored_sets(known).values()
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
    assert plan.unrecorded == frozenset()


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
    stored = next(iter(stored_sets(observed).values()))
    if generation is None:
        assert plan.mounts == ()
        assert {push.adapter_set for push in plan.pushes} == {stored}
    else:
        assert current_set(plan).generation == generation
        assert {push.adapter_set.generation for push in plan.pushes} == {generation}


def test_pods_of_an_earlier_configuration_keep_their_set_but_for_what_left_the_spec() -> None:
    observed = changed(running(BILLING, SQL), spec_of(SQL, {**BILLING, "name": "new"}, engine={"maxRank": 8}))
    old = next(iter(stored_sets(observed)))
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
    old = next(iter(stored_sets(before)))
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
        status=runtime_status(next(iter(stored_sets(observed).values()))).model_copy(update={"pool_uid": "other"}),
        asked=True,
    )
    plan = plan_of(changed(replace(observed, reports={"pod-0": stray}), spec_of(BILLING, SQL)))
    assert (plan.pushes, plan.resolves) == ((), ())


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
    assert current_set(plan).config_hash in stored_sets(observed), "the set of the pods that run"
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


# Merged mode

MERGE = {"name": "both", "adapters": [{"name": "billing", "weight": 0.5}]}


def config_hash(*adapters: dict[str, Any], **more: Any) -> str:
    return objects.build_runtime_config(pool_of(view_of(spec_of(*adapters, **more)))).config_hash()


def test_pods_are_born_with_all_that_the_spec_says_of_a_merge() -> None:
    spec = spec_of({**BILLING, "scale": 3.0}, SQL, merge=MERGE)
    merge = objects.build_runtime_config(pool_of(view_of(spec))).merge
    assert merge == Merge(
        name="both", adapters=(MergePart(name="billing", source=Source(uri=BILLING["uri"]), weight=1.5),)
    )


@pytest.mark.parametrize(
    ("billing", "sql", "merge", "rolls"),
    [
        pytest.param({}, {}, None, True, id="to-hot-mode"),
        pytest.param({"scale": 2.0}, {}, MERGE, True, id="scale"),
        pytest.param({"uri": "pvc://shelf/billing-2"}, {}, MERGE, True, id="source"),
        pytest.param({"digest": sha("x")}, {}, MERGE, True, id="digest"),
        pytest.param({}, {}, {**MERGE, "name": "other"}, True, id="name"),
        pytest.param({}, {}, {**MERGE, "adapters": [{"name": "billing"}]}, True, id="weight"),
        pytest.param({"pinned": True}, {}, MERGE, False, id="pinned"),
        pytest.param({}, {"uri": "pvc://shelf/sql-2", "scale": 2.0}, MERGE, False, id="an-adapter-outside"),
    ],
)
def test_what_rolls_a_merged_pool(
    billing: dict[str, Any], sql: dict[str, Any], merge: dict[str, Any] | None, rolls: bool
) -> None:
    before = config_hash(BILLING, SQL, merge=MERGE)
    more = {} if merge is None else {"merge": merge}
    assert (config_hash({**BILLING, **billing}, {**SQL, **sql}, **more) != before) is rolls


def test_a_merged_pool_is_told_of_the_merge_alone() -> None:
    observed = changed(running(BILLING, SQL), spec_of(BILLING, SQL, merge=MERGE))
    plan = plan_of(observed)
    assert [entry.name for entry in current_set(plan).adapters] == ["billing"]
    assert current_set(plan).adapters[0].digest == sha(BILLING["uri"]), "what is known is not asked again"
    outside = adapter(plan, "sql")
    assert (outside.reason, outside.desired_replicas, outside.digest) == ("PoolIsMerged", 0, None)
    assert outside.message is not None
    assert "`both`" in outside.message
    assert (status_of(plan).adapter_counts.desired, status_of(plan).adapter_counts.failed) == (1, 0)
    assert told(plan)["Stalled"] == ("False", "NoFault")
    assert told(plan)["Available"] == ("False", "RollingOut"), "the hot pods do not serve `both`"


def test_hot_pods_keep_their_set_while_the_merge_rolls_out() -> None:
    observed = changed(running(BILLING, SQL), spec_of(BILLING, SQL, merge=MERGE))
    plan = plan_of(observed)
    after = carried_out(observed, plan)
    assert sorted(len(found.adapters) for found in stored_sets(after).values()) == [1, 2]
    assert plan.pushes == ()


def test_a_merge_waits_for_the_version_of_the_spec() -> None:
    moved = {**BILLING, "uri": "pvc://shelf/billing-2"}
    assert plan_of(changed(running(BILLING), spec_of(moved))).mounts == (), "a hot one goes on with what it has"
    merged = plan_of(changed(running(BILLING), spec_of(moved, merge=MERGE)))
    entry = current_set(merged).adapters[0]
    assert (entry.source.uri, entry.digest) == (moved["uri"], None)


def test_a_merge_of_what_may_not_be_read_is_not_rolled_out() -> None:
    stray = {**BILLING, "uri": "pvc://elsewhere/billing"}
    observed = changed(running(BILLING, SQL), spec_of(stray, SQL, merge=MERGE))
    plan = plan_of(observed)
    hot = max(stored_sets(carried_out(observed, plan)).values(), key=lambda found: len(found.adapters))
    assert [(entry.name, entry.source.uri) for entry in hot.adapters] == [
        ("billing", BILLING["uri"]),
        ("sql", SQL["uri"]),
    ], "hot pods go on with what they serve"
    assert plan.pushes == ()
    assert plan.workload == ()
    assert told(plan)["Stalled"] == ("True", "SourceNotDeclared")


# Adapters that others ask for


def test_an_adapter_of_another_owner_is_planned_like_one_of_the_spec() -> None:
    observed = running(BILLING)
    pool = pool_of(observed.pool)
    source = Source(uri=SQL["uri"])
    owner = ObjectKey("Toy", "team", "spinning-top")
    guest = WantedAdapter("sql", source, digest=None, scale=2.0, pinned=True, owner=owner)
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
    assert adapter(plan, "sql").desired_replicas == 2
    assert len(plan.pushes) == 2
    assert plan.unrecorded == frozenset({source})
    gone = plan_pool(pool, inline_adapters(pool), carried_out(answered, plan), SETTINGS, NOW)
    assert [entry.name for entry in current_set(gone).adapters] == ["billing"]


def test_the_fault_of_an_adapter_of_another_owner_names_the_owner() -> None:
    pool = pool_of(view_of(spec_of(BILLING)))
    owner = ObjectKey("Toy", "team", "spinning-top")
    stray = WantedAdapter("stray", Source(uri="pvc://elsewhere/x"), None, 1.0, False, owner)
    plan = plan_pool(pool, (*inline_adapters(pool), stray), fresh(spec_of(BILLING)), SETTINGS, NOW)
    assert (adapter(plan, "stray").message or "").startswith(
        "adapter `stray` of Toy spinning-top: uri `pvc://elsewhere/x`"
    )
