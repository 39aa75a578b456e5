"""The store: slim views by pool, fed by events that may be late, doubled or missed."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator.clients.shares import Room
from graft_operator.decisions.fingerprint import fingerprint
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.loop.store import NoRoomError, Store

from tests.support.bodies import child_body, deployment_body, makers, pod_body, pool_body, replica_set_body

KEY = PoolKey("team", "support")


@pytest.fixture
def marked() -> list[PoolKey]:
    return []


@pytest.fixture
def store(marked: list[PoolKey]) -> Store:
    found = Store(marked.append)
    for kind, body in makers():
        found.put(kind, body, mark=False)
    return found


def test_objects_are_found_by_their_pool(store: Store, marked: list[PoolKey]) -> None:
    store.put("Pod", pod_body(podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "True"}]))
    view = store.pods(KEY)[0]
    assert (view.ip, view.ready) == ("10.0.0.1", True)
    assert marked == [KEY]


def test_an_event_that_comes_late_is_ignored(store: Store, marked: list[PoolKey]) -> None:
    store.put("AdapterDeployment", pool_body(version=10))
    store.put("AdapterDeployment", pool_body(version=9))
    found = store.pool(KEY)
    assert found is not None
    assert found.generation == 10
    assert marked == [KEY]


@pytest.mark.parametrize("kind", ["AdapterDeployment", "Pod"])
def test_what_is_known_already_wants_no_pass(store: Store, marked: list[PoolKey], kind: str) -> None:
    body = pool_body(version=10) if kind == "AdapterDeployment" else pod_body(version=10)
    store.put(kind, body)
    marked.clear()
    assert store.put(kind, body) == KEY  # a watch that begins, or the echo of our own write
    assert marked == []


def test_the_answer_to_a_status_write_wants_no_pass(store: Store, marked: list[PoolKey]) -> None:
    store.put("AdapterDeployment", pool_body(version=10), mark=False)
    found = store.pool(KEY)
    assert found is not None
    assert found.resource_version == "10"
    assert marked == []


def test_a_new_object_of_the_same_name_replaces_the_old_one(store: Store) -> None:
    store.put("AdapterDeployment", pool_body(version=10))
    store.put("AdapterDeployment", pool_body(version=3, uid="q"))
    found = store.pool(KEY)
    assert found is not None
    assert found.uid == "q"


def test_the_deletion_of_an_older_object_leaves_the_newer_one(store: Store) -> None:
    store.put("AdapterDeployment", pool_body(version=2, uid="q"))
    store.remove(ObjectKey("AdapterDeployment", "team", "support"), "pool")
    assert store.pool(KEY) is not None
    store.remove(ObjectKey("AdapterDeployment", "team", "support"), "q")
    assert store.pool(KEY) is None


def test_an_object_that_loses_its_label_leaves_the_pool(store: Store, marked: list[PoolKey]) -> None:
    store.put("Pod", pod_body())
    body = pod_body(version=2)
    body["metadata"]["labels"] = {}
    store.put("Pod", body)
    assert store.pods(KEY) == ()
    assert marked == [KEY, KEY]


def test_pruning_forgets_what_was_deleted_unseen_and_nothing_newer(store: Store, marked: list[PoolKey]) -> None:
    store.put("Pod", pod_body("gone"))
    store.put("Pod", pod_body("alive"))
    before = store.keys_of("Pod")
    store.put("Pod", pod_body("made-meanwhile"))
    marked.clear()
    assert store.prune("Pod", None, before, ["Pod-alive"]) == 1
    assert {view.name for view in store.pods(KEY)} == {"alive", "made-meanwhile"}
    assert marked == [KEY]


def test_pruning_one_namespace_leaves_the_others(store: Store) -> None:
    store.put("Pod", pod_body())
    assert store.keys_of("Pod", "elsewhere") == {}
    assert store.prune("Pod", "elsewhere", store.keys_of("Pod"), []) == 0


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("Pod", pod_body(owner=None), id="a-pod-with-the-label-alone"),
        pytest.param("Pod", pod_body(owner="pool"), id="a-pod-that-the-pool-never-makes"),
        pytest.param("Pod", pod_body(owner="ReplicaSet-other"), id="a-pod-of-an-unknown-replica-set"),
    ],
)
def test_a_label_makes_no_pod_one_of_the_pool(store: Store, kind: str, body: dict[str, Any]) -> None:
    store.put(kind, body)
    assert store.pods(KEY) == ()


@pytest.mark.parametrize(
    ("kind", "body"),
    [
        pytest.param("ReplicaSet", replica_set_body(owner=None), id="replica-set-of-nobody"),
        pytest.param("ReplicaSet", replica_set_body(owner="Deployment-other"), id="replica-set-of-another-deployment"),
        pytest.param("Deployment", deployment_body(owner="another-pool"), id="deployment-of-another-pool"),
    ],
)
def test_a_pod_is_one_of_the_pool_by_the_whole_chain_of_owners(store: Store, kind: str, body: dict[str, Any]) -> None:
    store.put("Pod", pod_body())
    assert [view.name for view in store.pods(KEY)] == ["support-1-x"]
    body["metadata"]["resourceVersion"] = "2"
    store.put(kind, body)
    assert store.pods(KEY) == ()


def test_the_order_in_which_pods_and_their_makers_are_seen_does_not_matter(marked: list[PoolKey]) -> None:
    store = Store(marked.append)
    store.put("Pod", pod_body())
    store.put("ReplicaSet", replica_set_body())
    store.put("AdapterDeployment", pool_body())
    store.put("Deployment", deployment_body())
    assert [view.name for view in store.pods(KEY)] == ["support-1-x"]


@pytest.mark.parametrize("owner", [None, "another-pool"])
@pytest.mark.parametrize("kind", ["ConfigMap", "NetworkPolicy", "Service", "PodDisruptionBudget"])
def test_what_the_pool_does_not_control_is_not_even_looked_at(
    store: Store, marked: list[PoolKey], kind: str, owner: str | None
) -> None:
    store.put(kind, child_body(kind, "foreign", owner, binaryData={"adapter-set.json.gz": "no base64"}))
    assert [child.kind for child in store.children(KEY)] == ["Deployment"]
    assert marked == []


def test_a_replica_set_that_counts_its_pods_wants_no_pass(store: Store, marked: list[PoolKey]) -> None:
    body = replica_set_body()
    body["metadata"]["resourceVersion"] = "2"
    store.put("ReplicaSet", {**body, "status": {"replicas": 1}})
    assert marked == []


def test_a_namespace_may_not_have_more_remembered_than_its_share(marked: list[PoolKey]) -> None:
    store = Store(marked.append, Room(20_000))
    store.put("AdapterDeployment", pool_body(spec={"text": "x" * 10_000}))
    other = pool_body(uid="other", name="other", spec={"text": "x" * 10_000})
    store.put("AdapterDeployment", other)
    elsewhere = pool_body(uid="elsewhere", namespace="elsewhere", spec={"text": "x" * 10_000})
    store.put("AdapterDeployment", elsewhere)
    first, second, third = (store.pool(PoolKey(*key)) for key in (KEY, ("team", "other"), ("elsewhere", "support")))
    assert first is not None
    assert second is not None
    assert third is not None
    assert first.failure is third.failure is None
    assert second.failure is not None
    assert second.failure.reason == "TooLarge"
    assert not second.spec
    with pytest.raises(NoRoomError):
        store.put("ConfigMap", child_body("ConfigMap", "set", binaryData={"adapter-set.json.gz": "x" * 10_000}))
    store.remove(ObjectKey("AdapterDeployment", "team", "support"), "pool")
    other["metadata"]["resourceVersion"] = "2"
    store.put("AdapterDeployment", other)
    found = store.pool(PoolKey("team", "other"))
    assert found is not None
    assert found.failure is None


def crashing(**ended: Any) -> dict[str, Any]:
    """The status of a pod whose container `main` has ended and waits to be started again."""
    waiting = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 10s restarting failed container=main"}}
    return {"containerStatuses": [{"name": "main", "state": waiting, "lastState": {"terminated": ended}}]}


@pytest.mark.parametrize(
    ("status", "trouble"),
    [
        pytest.param({"phase": "Running"}, None, id="fine"),
        pytest.param(
            {
                "conditions": [
                    {"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "no GPU"}
                ]
            },
            "Unschedulable: no GPU",
            id="unschedulable",
        ),
        pytest.param(
            {"containerStatuses": [{"state": {"waiting": {"reason": "ErrImagePull", "message": "not found"}}}]},
            "ErrImagePull: not found",
            id="image",
        ),
        pytest.param(
            {"containerStatuses": [{"state": {"waiting": {"reason": "ContainerCreating"}}}]}, None, id="starting"
        ),
        pytest.param({"phase": "Failed", "reason": "Evicted", "message": "disk"}, "Evicted: disk", id="evicted"),
        pytest.param(
            crashing(reason="Error", exitCode=2, message='{"message": "one"}\n{"message": "two\\n\\nhint: three"}\n'),
            "CrashLoopBackOff: two hint: three",
            id="last line of its log",
        ),
        pytest.param(
            crashing(reason="Error", exitCode=2, message="a line\nno JSON"), "CrashLoopBackOff: no JSON", id="other log"
        ),
        pytest.param(
            crashing(reason="Error", exitCode=137),
            "CrashLoopBackOff: Error: `main` ended with status 137",
            id="no last words",
        ),
        pytest.param(
            crashing(reason="OOMKilled", exitCode=137, message='{"message": "killed"}'),
            "CrashLoopBackOff: OOMKilled: `main` took more memory than its limit, 300Mi",
            id="out of memory",
        ),
    ],
)
def test_why_a_pod_does_not_run(store: Store, status: dict[str, Any], trouble: str | None) -> None:
    spec = {"containers": [{"name": "main", "resources": {"limits": {"memory": "300Mi"}}}]}
    store.put("Pod", pod_body(**status) | {"spec": spec})
    assert store.pods(KEY)[0].trouble == trouble


@pytest.mark.parametrize(
    ("reason", "stuck"),
    [
        ("ErrImagePull", True),
        ("ImagePullBackOff", True),
        ("InvalidImageName", True),
        ("ErrImageNeverPull", True),
        ("CreateContainerConfigError", True),
        ("RegistryUnavailable", False),
        ("CrashLoopBackOff", False),
        ("PodInitializing", False),
    ],
)
@pytest.mark.parametrize("kind", ["containerStatuses", "initContainerStatuses"])
def test_whether_a_person_must_help_a_container_to_start(store: Store, kind: str, reason: str, stuck: bool) -> None:
    status: dict[str, Any] = {kind: [{"state": {"running": {}}}, {"state": {"waiting": {"reason": reason}}}]}
    store.put("Pod", pod_body(**status))
    assert store.pods(KEY)[0].stuck is stuck


def test_a_fingerprint_is_of_what_is_wanted_only() -> None:
    body: dict[str, Any] = {
        "metadata": {"name": "x", "labels": {"a": "b"}, "resourceVersion": "1", "generation": 1},
        "spec": {"replicas": 1},
        "status": {"replicas": 0},
    }
    later = {
        **body,
        "metadata": {
            **body["metadata"],
            "resourceVersion": "2",
            "managedFields": [],
            "annotations": {"deployment.kubernetes.io/revision": "1"},
        },
        "status": {"replicas": 1},
    }
    assert fingerprint(later) == fingerprint(body)
    assert fingerprint({**body, "spec": {"replicas": 2}}) != fingerprint(body)
    assert fingerprint({**body, "metadata": {**body["metadata"], "labels": {}}}) != fingerprint(body)
