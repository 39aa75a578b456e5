"""The store: slim views by pool, fed by events that may be late, doubled or missed."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator.decisions.fingerprint import fingerprint
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.loop.store import Store

KEY = PoolKey("team", "support")


@pytest.fixture
def marked() -> list[PoolKey]:
    return []


@pytest.fixture
def store(marked: list[PoolKey]) -> Store:
    return Store(marked.append)


def pool(version: int = 1, uid: str = "p", **metadata: Any) -> dict[str, Any]:
    names = {"namespace": "team", "name": "support", "uid": uid, "resourceVersion": str(version), "generation": version}
    return {"metadata": {**names, **metadata}, "spec": {}}


def pod(name: str = "support-x", version: int = 1, uid: str = "u", **status: Any) -> dict[str, Any]:
    labels = {"graft.dev/deployment": "support", "graft.dev/config-hash": "abc"}
    metadata = {"namespace": "team", "name": name, "uid": uid, "resourceVersion": str(version), "labels": labels}
    return {"metadata": metadata, "status": status}


def test_objects_are_found_by_their_pool(store: Store, marked: list[PoolKey]) -> None:
    store.put("AdapterDeployment", pool())
    store.put("Pod", pod(podIP="10.0.0.1", conditions=[{"type": "Ready", "status": "True"}]))
    view = store.pods(KEY)[0]
    assert (view.ip, view.ready, view.config_hash) == ("10.0.0.1", True, "abc")
    assert marked == [KEY, KEY]


def test_an_event_that_comes_late_is_ignored(store: Store, marked: list[PoolKey]) -> None:
    store.put("AdapterDeployment", pool(version=10))
    store.put("AdapterDeployment", pool(version=9))
    found = store.pool(KEY)
    assert found is not None
    assert found.generation == 10
    assert marked == [KEY]


@pytest.mark.parametrize("kind", ["AdapterDeployment", "Pod"])
def test_what_is_known_already_wants_no_pass(store: Store, marked: list[PoolKey], kind: str) -> None:
    body = pool(version=10) if kind == "AdapterDeployment" else pod(version=10)
    store.put(kind, body)
    marked.clear()
    assert store.put(kind, body) == KEY  # a watch that begins, or the echo of our own write
    assert marked == []


def test_the_answer_to_a_status_write_wants_no_pass(store: Store, marked: list[PoolKey]) -> None:
    store.put("AdapterDeployment", pool(version=10), mark=False)
    found = store.pool(KEY)
    assert found is not None
    assert found.resource_version == "10"
    assert marked == []


def test_a_new_object_of_the_same_name_replaces_the_old_one(store: Store) -> None:
    store.put("AdapterDeployment", pool(version=10))
    store.put("AdapterDeployment", pool(version=3, uid="q"))
    found = store.pool(KEY)
    assert found is not None
    assert found.uid == "q"


def test_the_deletion_of_an_older_object_leaves_the_newer_one(store: Store) -> None:
    store.put("AdapterDeployment", pool(uid="q"))
    store.remove(ObjectKey("AdapterDeployment", "team", "support"), "p")
    assert store.pool(KEY) is not None
    store.remove(ObjectKey("AdapterDeployment", "team", "support"), "q")
    assert store.pool(KEY) is None


def test_an_object_that_loses_its_label_leaves_the_pool(store: Store, marked: list[PoolKey]) -> None:
    store.put("Pod", pod())
    body = pod(version=2)
    body["metadata"]["labels"] = {}
    store.put("Pod", body)
    assert store.pods(KEY) == ()
    assert marked == [KEY, KEY]


def test_pruning_forgets_what_was_deleted_unseen_and_nothing_newer(store: Store, marked: list[PoolKey]) -> None:
    store.put("Pod", pod("gone", uid="1"))
    store.put("Pod", pod("alive", uid="2"))
    before = store.keys_of("Pod")
    store.put("Pod", pod("made-meanwhile", uid="3"))
    marked.clear()
    assert store.prune("Pod", None, before, ["2"]) == 1
    assert {view.name for view in store.pods(KEY)} == {"alive", "made-meanwhile"}
    assert marked == [KEY]


def test_pruning_one_namespace_leaves_the_others(store: Store) -> None:
    store.put("Pod", pod(uid="1"))
    assert store.keys_of("Pod", "elsewhere") == {}
    assert store.prune("Pod", "elsewhere", store.keys_of("Pod"), []) == 0


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
    ],
)
def test_why_a_pod_does_not_run(store: Store, status: dict[str, Any], trouble: str | None) -> None:
    store.put("Pod", pod(**status))
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
    store.put("Pod", pod(**status))
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
