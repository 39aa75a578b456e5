"""Pools as the operator observes them, and the plans that it makes of them."""

from __future__ import annotations

import hashlib
from dataclasses import replace
from typing import Any

from graft_operator import objects
from graft_operator.decisions.observed import (
    Applied,
    Child,
    Observed,
    PodReport,
    PodView,
    PoolView,
    ResolvedSource,
    Rollout,
)
from graft_operator.decisions.plan import Plan, make_plan
from graft_operator.decisions.readers import read_child
from graft_operator.keys import ObjectKey
from graft_operator.objects import KubernetesObject, Pool
from graft_operator.resource import AdapterDeploymentStatus, AdapterStatus, Condition, parse_spec
from graft_operator.settings import Settings
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.contract.status import AdapterReport, AdapterState, BaseReport, BaseState, RuntimeStatus
from graft_runtime.contract.wire import Fault

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


def make_pool(**spec: Any) -> Pool:
    """Make the pool `support` of the model `gemma` with the adapter `billing`; `spec` says what differs."""
    usual = {
        "baseModel": {"uri": "pvc://models/gemma"},
        "sources": [{"name": "models", "claimName": "models"}],
        "adapters": [{"name": "billing", "uri": "pvc://models/billing"}],
    }
    return Pool(namespace="team-a", name="support", uid="11-22", generation=3, spec=parse_spec({**usual, **spec}))


def pool_of(view: PoolView) -> Pool:
    return Pool(view.namespace, view.name, view.uid, view.generation, parse_spec(view.spec))


def fresh(spec: dict[str, Any], **more: Any) -> Observed:
    """Observe a pool of which nothing was made yet."""
    return Observed(view_of(spec), keys=KEYS, **more)


def carried_out(observed: Observed, plan: Plan) -> Observed:
    """Observe the same pool after the API server took what the plan applies."""
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
    """Let the Deployment have made all its pods, and each have the stored set and every adapter of it mounted."""
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
    adapter_set = observed.stored_sets[rollout.config_hash]
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
                bytes=4096,
            )
            for entry in adapter_set.adapters
        ),
    )


def running(*adapters: dict[str, Any], **more: Any) -> Observed:
    """Observe a pool on which everything is ready, its status written."""
    observed = fresh(spec_of(*adapters, **more), resolutions=resolved(*adapters))
    observed = with_pods(carried_out(observed, plan_of(observed)))
    return replace(carried_out(observed, plan_of(observed)), resolutions={})


def changed(observed: Observed, spec: dict[str, Any], **more: Any) -> Observed:
    """Replace the spec."""
    view = replace(observed.pool, spec=spec, generation=observed.pool.generation + 1)
    return replace(observed, pool=view, **more)


def plan_of(observed: Observed) -> Plan:
    return make_plan(observed, SETTINGS, NOW)


def status_of(plan: Plan) -> AdapterDeploymentStatus:
    """Return what the plan writes as the status of the pool."""
    return plan.statuses[ObjectKey("AdapterDeployment", "team", "support")]


def condition(plan: Plan, kind: str) -> Condition:
    return next(found for found in status_of(plan).conditions if found.type == kind)


def told(plan: Plan) -> dict[str, tuple[str, str]]:
    """Map each condition to its status and reason."""
    return {found.type: (found.status, found.reason) for found in status_of(plan).conditions}


def adapter(plan: Plan, name: str) -> AdapterStatus:
    return next(found for found in status_of(plan).adapters if found.name == name)


def current_set(plan: Plan) -> AdapterSet:
    """Return the one adapter set that the plan stores."""
    bodies = [apply.body for apply in plan.mounts if "binaryData" in apply.body]
    assert len(bodies) == 1
    found = objects.read_adapter_set(bodies[0])
    assert found is not None
    return found
