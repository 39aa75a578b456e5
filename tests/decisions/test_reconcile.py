"""A pass over a pool against an API server in memory: what races with it, what refuses, what it tells. Milliseconds."""

from __future__ import annotations

import asyncio
import logging
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, cast

import pytest
from graft_operator.clients.cluster import Cluster, ClusterError, ConflictError, RejectedError, UnavailableError
from graft_operator.clients.followers import PodFollowers
from graft_operator.clients.introductions import Introductions
from graft_operator.clients.resolutions import Resolutions
from graft_operator.decisions.introductions import Introduction
from graft_operator.decisions.observed import PodReport, PodView, ResolvedSource
from graft_operator.keys import ObjectKey, PoolKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.loop.effects import SAME_REPAIR_SECONDS
from graft_operator.loop.queue import RETRIES, WorkQueue
from graft_operator.loop.raced import RacedError
from graft_operator.loop.reconcile import REJECTED_SECONDS, Reconciler
from graft_operator.loop.statuses import REPAIRS_AT_ONCE
from graft_operator.loop.store import Store
from graft_operator.settings import Settings
from graft_runtime.contract.checkpoints import Source

from tests.support.pools import BILLING, spec_of
from tests.support.waiting import until

KEY = PoolKey("team", "support")
POOL = ObjectKey("AdapterDeployment", "team", "support")
SETTINGS = Settings(namespace="graft-system", runtime_image="runtime:1", allowed_schemes=("pvc",))
CHILDREN = [
    "ConfigMap support-keys",
    "ConfigMap support-config",
    "ConfigMap support-set",
    "Service support",
    "PodDisruptionBudget support",
    "NetworkPolicy support",
    "Deployment support",
]


class ApiServer:
    """Objects in memory, with the preconditions of a server-side apply; `faults` are raised first."""

    def __init__(self) -> None:
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.events: list[dict[str, Any]] = []
        self.applied: list[str] = []
        self.faults: dict[str, list[ClusterError]] = {}
        """Kind, `dry run` or `status` → what the next requests about it raise."""
        self.meanwhile: Callable[[], None] = lambda: None
        """What happens while an apply is under way."""
        self.undeclared = ""
        """A field of adapters in the status that the definition does not know."""
        self.version = 100

    def put(self, body: dict[str, Any], **metadata: Any) -> dict[str, Any]:
        self.version += 1
        key = body["kind"], body["metadata"]["name"]
        uid = {"uid": f"uid-{self.version}"} if key not in self.objects else {}
        old = self.objects.get(key, {}).get("metadata", {})
        new = {**old, **body["metadata"], **uid, "resourceVersion": str(self.version), **metadata}
        self.objects[key] = {**self.objects.get(key, {}), **body, "metadata": new}
        return self.objects[key]

    def fail(self, kind: str) -> None:
        if self.faults.get(kind):
            raise self.faults[kind].pop(0)

    async def apply(
        self, body: dict[str, Any], *, uid: str | None, resource_version: str | None = None, dry_run: bool = False
    ) -> dict[str, Any]:
        self.fail("dry run" if dry_run else body["kind"])
        found = self.objects.get((body["kind"], body["metadata"]["name"]))
        if uid != (None if found is None else found["metadata"]["uid"]):
            raise ConflictError("the object has been modified", 409)
        if dry_run:
            return body
        self.meanwhile()
        self.applied.append(f"{body['kind']} {body['metadata']['name']}")
        return self.put(body)

    async def apply_status(self, body: dict[str, Any]) -> dict[str, Any]:
        self.fail("status")
        found = self.objects.get((body["kind"], body["metadata"]["name"]))
        if found is None:
            raise RejectedError("not found", 404)
        if found["metadata"]["resourceVersion"] != body["metadata"]["resourceVersion"]:
            raise ConflictError("the object has been modified", 409)
        if any(self.undeclared in adapter for adapter in body["status"].get("adapters", ())):
            path = f'.status.adapters[name="billing"].{self.undeclared}'
            raise RejectedError(f"failed to create typed patch object (x): {path}: field not declared in schema", 500)
        return self.put({"kind": body["kind"], "metadata": body["metadata"], "status": body["status"]})

    async def remove_fields(self, body: dict[str, Any], pointers: Sequence[str]) -> dict[str, Any]:
        assert pointers == ("/spec/paused",)
        spec = {key: value for key, value in body["spec"].items() if key != "paused"}
        return self.put({**body, "spec": spec}, managedFields=[])

    async def create(self, body: dict[str, Any]) -> dict[str, Any]:
        self.fail(body["kind"])
        self.events.append(body)
        return body

    async def get(self, kind: str, namespace: str, name: str) -> dict[str, Any] | None:
        return self.objects.get((kind, name))

    async def delete(self, kind: str, namespace: str, name: str, uid: str) -> None:
        del self.objects[kind, name]


class Followers:
    """Follows nobody."""

    def __init__(self) -> None:
        self.forgotten = 0
        """Passes over pools that are not there."""

    def follow(self, key: PoolKey, pods: Iterable[PodView]) -> None:
        self.forgotten += key != KEY

    def reports(self, key: PoolKey) -> Mapping[str, PodReport]:
        return {}


class Questions:
    """Asks nobody."""

    def __init__(self) -> None:
        self.kept: frozenset[Source] = frozenset()

    def keep(self, key: PoolKey, sources: Iterable[Source]) -> None:
        self.kept = frozenset(sources)

    def known(self, key: PoolKey) -> Mapping[Source, ResolvedSource]:
        return {}


class Introduced:
    """Which pods were told of others."""

    def make(self, key: PoolKey, wanted: Iterable[Introduction]) -> None:
        self.pods = [introduction.pod.uid for introduction in wanted]


class Operator:
    """A reconciler with the pool `support` in its store."""

    def __init__(self, **spec: Any) -> None:
        self.now = 1_800_000_000.0
        self.api = ApiServer()
        self.queue: WorkQueue[PoolKey] = WorkQueue(lambda: self.now)
        self.store = Store(self.queue.mark)
        self.followers, self.questions, self.introductions = Followers(), Questions(), Introduced()
        self.plans = 0
        self.reconciler = Reconciler(
            cluster=cast(Cluster, self.api),
            store=self.store,
            queue=self.queue,
            followers=cast(PodFollowers, self.followers),
            resolutions=cast(Resolutions, self.questions),
            introductions=cast(Introductions, self.introductions),
            keys=self.keys,
            settings=SETTINGS,
            clock=lambda: self.now,
        )
        self.see(spec)

    def keys(self) -> dict[str, str]:
        self.plans += 1
        return {"0123": "PEM"}

    def see(self, spec: dict[str, Any]) -> None:
        """The pool as a user writes it."""
        body = {
            **ADAPTER_DEPLOYMENT.type_meta,
            "metadata": {"namespace": "team", "name": "support"},
            "spec": spec_of(BILLING, **{"replicas": 1, **spec}),
        }
        self.store.put("AdapterDeployment", self.api.put(body, generation=1))

    async def reconcile(self) -> None:
        self.plans, self.api.applied = 0, []
        await self.reconciler.reconcile(KEY)

    def edit(self, kind: str, **fields: Any) -> None:
        """Somebody else changes an object, and its event comes."""
        found = next(body for (found, _), body in self.api.objects.items() if found == kind)
        self.store.put(kind, self.api.put({**found, **fields}))

    def remove(self, kind: str, *, unseen: bool = False) -> None:
        name = next(name for found, name in self.api.objects if found == kind)
        uid = self.api.objects.pop((kind, name))["metadata"]["uid"]
        if not unseen:
            self.store.remove(ObjectKey(kind, "team", name), uid)

    @property
    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.api.objects["AdapterDeployment", "support"].get("status", {})
        return found

    def condition(self, kind: str) -> tuple[str, str]:
        found = next(entry for entry in self.status["conditions"] if entry["type"] == kind)
        return found["status"], found["reason"]

    def told(self) -> list[tuple[str, str]]:
        return [(event["reason"], event["message"]) for event in self.api.events]


@pytest.fixture
async def settled() -> Operator:
    """An operator that has nothing left to do."""
    operator = Operator()
    await operator.reconcile()
    return operator


def without_hash(applied: str) -> str:
    return re.sub(r"-(config|set)-[0-9a-f]+$", r"-\1", applied)


async def test_a_new_pool_gets_its_objects_and_a_status_and_then_nothing_more() -> None:
    operator = Operator()
    await operator.reconcile()
    assert [without_hash(name) for name in operator.api.applied] == CHILDREN
    assert operator.condition("Ready") == ("False", "RollingOut")
    assert operator.status["appliedHash"]
    assert operator.questions.kept == {Source(uri="pvc://shelf/billing")}
    version = operator.api.version
    await operator.reconcile()
    assert (operator.api.version, operator.plans) == (version, 1), "one plan where nothing changed, and no write"


async def test_what_is_ours_and_was_not_seen_yet_is_taken_over_by_the_next_pass(settled: Operator) -> None:
    for child in settled.store.children(KEY):
        if child.kind == "Service":
            settled.store.remove(ObjectKey("Service", "team", "support"), child.uid)
    with pytest.raises(RacedError, match="Service support is not as it was observed"):
        await settled.reconcile()
    await settled.reconcile()
    assert settled.api.applied == []


async def test_what_is_gone_unseen_is_made_again_by_the_next_pass(settled: Operator) -> None:
    settled.edit("Service", spec={"type": "NodePort"})
    settled.remove("Service", unseen=True)
    with pytest.raises(RacedError):
        await settled.reconcile()
    await settled.reconcile()
    assert settled.api.applied == ["Service support"]


async def test_a_foreign_object_is_left_alone_and_told_of() -> None:
    operator = Operator()
    operator.api.put({"kind": "Service", "metadata": {"namespace": "team", "name": "support"}})
    await operator.reconcile()
    assert "Service support" not in operator.api.applied
    assert operator.condition("Stalled") == ("True", "ForeignObject")
    assert operator.plans == 2, "one more, of the failure"
    assert [reason for reason, _ in operator.told()] == ["ForeignObject"]


OURS = {"managedFields": [{"manager": "graft", "operation": "Apply"}]}


@pytest.mark.parametrize(
    ("lost", "told"),
    [
        ({"labels": {}}, "metadata.labels[app.kubernetes.io/instance]: nothing instead of 'support'"),
        ({"ownerReferences": [], **OURS}, "metadata.ownerReferences[0]: nothing instead of {…}"),
        ({"ownerReferences": [], "labels": {}, **OURS}, "metadata.labels[app.kubernetes.io/instance]: nothing"),
    ],
    ids=["label", "owner", "both"],
)
@pytest.mark.parametrize("kind", ["Deployment", "Service", "NetworkPolicy"])
async def test_what_has_lost_its_label_or_its_owner_is_taken_back(
    settled: Operator, kind: str, lost: dict[str, Any], told: str
) -> None:
    before = settled.api.objects[kind, "support"]
    settled.edit(kind, metadata={**before["metadata"], **lost})
    with pytest.raises(RacedError):
        await settled.reconcile()
    await settled.reconcile()
    assert settled.api.applied == [], "it is known again"
    after = settled.api.objects[kind, "support"]["metadata"]
    for field in ("uid", "labels", "ownerReferences"):
        assert after[field] == before["metadata"][field]
    ((reason, message),) = settled.told()
    assert reason == "DriftRepaired"
    assert message.startswith(f"{kind} support: {told}")


async def test_what_others_have_added_to_a_spec_is_removed_before_it_is_tried_out(settled: Operator) -> None:
    settled.see({"podTemplate": {"spec": {"nodeSelector": {"zone": "a"}}}})
    await settled.reconcile()
    before = settled.api.objects["Deployment", "support"]
    owners = [
        {"manager": "graft", "operation": "Apply", "fieldsV1": {"f:spec": {"f:replicas": {}}}},
        {"manager": "kubectl-rollout", "operation": "Update", "fieldsV1": {"f:spec": {"f:paused": {}}}},
    ]
    metadata = {**before["metadata"], "managedFields": owners}
    settled.edit("Deployment", spec={**before["spec"], "paused": True}, metadata=metadata)
    settled.api.faults["dry run"] = [RejectedError("refused together with what was added", 422)]
    await settled.reconcile()
    assert settled.api.objects["Deployment", "support"]["spec"] == before["spec"]
    assert settled.told()[-1] == ("DriftRepaired", "Deployment support: spec.paused: True instead of nothing")
    assert settled.condition("Stalled")[0] == "False"
    await settled.reconcile()
    assert settled.api.applied == []


async def test_an_object_that_somebody_changes_again_and_again_is_left_to_him_for_a_while(settled: Operator) -> None:
    original = settled.api.objects["NetworkPolicy", "support"]["spec"]
    for _ in range(REPAIRS_AT_ONCE):
        settled.edit("NetworkPolicy", spec={**original, "ingress": []})
        await settled.reconcile()
        assert settled.api.applied == ["NetworkPolicy support"]
    for _ in range(3):
        settled.edit("NetworkPolicy", spec={**original, "ingress": []})
        await settled.reconcile()
        assert settled.api.applied == []
    assert settled.condition("Stalled") == ("True", "Contested")
    assert [reason for reason, _ in settled.told()].count("Contested") == 1


async def test_a_status_that_somebody_writes_again_and_again_is_left_to_him_for_a_while(settled: Operator) -> None:
    right = settled.status
    for _ in range(REPAIRS_AT_ONCE):
        settled.edit("AdapterDeployment", status={**right, "url": "http://theirs"})
        await settled.reconcile()
        assert settled.status["url"] == right["url"]
    settled.edit("AdapterDeployment", status={**right, "url": "http://theirs"})
    version = settled.api.version
    for _ in range(3):
        await settled.reconcile()
    assert settled.api.version == version


async def test_a_status_in_which_somebody_else_tells_of_the_contest_is_left_once_it_comes_back(
    settled: Operator,
) -> None:
    contested = [{**condition, "reason": "Contested"} for condition in settled.status["conditions"]]
    for url in ("http://theirs", "http://theirs/again"):
        settled.edit("AdapterDeployment", status={**settled.status, "conditions": contested, "url": url})
        await settled.reconcile()
    assert settled.status["url"] == "http://theirs/again"


async def test_what_nobody_controls_and_somebody_else_has_made_is_foreign(settled: Operator) -> None:
    metadata = settled.api.objects["Service", "support"]["metadata"]
    theirs = {"managedFields": [{"manager": "kubectl", "operation": "Update"}]}
    settled.edit("Service", metadata={**metadata, "ownerReferences": [], **theirs})
    await settled.reconcile()
    assert settled.condition("Stalled") == ("True", "ForeignObject")


async def test_an_older_definition_gets_the_status_without_what_it_does_not_know() -> None:
    operator = Operator(adapters=[{"name": "billing", "uri": "pvc://elsewhere/x"}, BILLING | {"name": "other"}])
    operator.api.undeclared = "reason"
    await operator.reconcile()
    assert operator.condition("Ready") == ("False", "RollingOut")
    assert [set(adapter) & {"name", "reason"} for adapter in operator.status["adapters"]] == [{"name"}] * 2
    outdated = [message for reason, message in operator.told() if reason == "DefinitionOutdated"]
    await operator.reconcile()
    assert [message for reason, message in operator.told() if reason == "DefinitionOutdated"] == outdated
    assert len(outdated) == 1
    assert "lacks status.adapters.reason" in outdated[0]
    assert "hint: upgrade the release" in outdated[0]
    operator.api.undeclared = ""
    await operator.reconcile()
    assert operator.status["adapters"][0]["reason"], "told once the definition knows it"


async def test_what_is_left_over_from_a_deleted_pool_of_that_name_is_waited_for() -> None:
    operator = Operator()
    owner = {"kind": "AdapterDeployment", "name": "support", "uid": "before", "controller": True}
    metadata = {"namespace": "team", "name": "support", "ownerReferences": [owner]}
    operator.api.put({"kind": "Service", "metadata": metadata})
    with pytest.raises(RacedError):
        await operator.reconcile()
    assert operator.status == {}, "nothing is told of it"
    operator.remove("Service", unseen=True)
    await operator.reconcile()
    assert "Service support" in operator.api.applied


async def test_an_object_that_the_api_server_refuses_is_told_of() -> None:
    operator = Operator()
    operator.api.faults["Deployment"] = [RejectedError("exceeded quota", 403)]
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "ApplyRejected")
    assert "the API server refuses Deployment support: exceeded quota" in operator.told()[0][1]
    await operator.reconcile()
    assert operator.api.applied == ["Deployment support"]
    assert operator.condition("Stalled") == ("False", "NoFault")


async def test_a_pod_template_that_is_refused_is_remembered_and_tried_again_later() -> None:
    operator = Operator(podTemplate={"spec": {"nodeSelector": {"a": "b"}}})
    operator.api.faults["dry run"] = [RejectedError("nodeSelector is not allowed here", 422)]
    await operator.reconcile()
    assert "Deployment support" not in operator.api.applied
    assert operator.condition("Stalled") == ("True", "InvalidPodTemplate")
    operator.now += REJECTED_SECONDS - 1
    await operator.reconcile()
    assert operator.api.applied == []
    operator.now += 2
    await operator.reconcile()
    assert "Deployment support" in operator.api.applied
    assert operator.condition("Stalled") == ("False", "NoFault")


@pytest.mark.parametrize("fault", [UnavailableError("no answer"), ConflictError("it changed", 409)])
async def test_a_status_that_could_not_be_written_is_written_by_the_next_pass(fault: ClusterError) -> None:
    operator = Operator()
    operator.api.faults["status"] = [fault]
    with pytest.raises(UnavailableError if isinstance(fault, UnavailableError) else RacedError):
        await operator.reconcile()
    assert operator.status == {}
    await operator.reconcile()
    assert operator.api.applied == []
    assert operator.condition("Ready") == ("False", "RollingOut")


async def test_a_status_of_what_the_pool_was_is_not_written_to_what_it_is_now(settled: Operator) -> None:
    settled.see({"replicas": 2})
    before = settled.status
    settled.api.meanwhile = lambda: settled.see({"replicas": 3})
    with pytest.raises(RacedError, match="the status was not written"):
        await settled.reconcile()
    assert settled.status == before
    settled.api.meanwhile = lambda: None
    await settled.reconcile()
    assert settled.status != before


async def test_a_pool_that_is_gone_meanwhile_is_no_fault(settled: Operator) -> None:
    settled.see({"replicas": 2})
    settled.remove("AdapterDeployment", unseen=True)
    await settled.reconcile()


async def test_a_pool_that_is_gone_is_forgotten(settled: Operator) -> None:
    settled.remove("AdapterDeployment")
    await settled.reconcile()
    assert settled.questions.kept == frozenset()
    assert settled.plans == 0


async def test_an_event_that_can_t_be_written_holds_up_nothing() -> None:
    operator = Operator(adapters=[{"name": "stray", "uri": "pvc://elsewhere/x"}])
    operator.api.faults["Event"] = [UnavailableError("no answer"), RejectedError("forbidden", 403)]
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "AdaptersFailed")
    assert operator.told() == []


async def test_what_is_not_needed_any_more_is_deleted(settled: Operator) -> None:
    settled.see({"replicas": 0})
    await settled.reconcile()
    assert ("PodDisruptionBudget", "support") not in settled.api.objects
    await settled.reconcile()
    assert settled.api.applied == []


async def test_a_repair_of_drift_tells_the_field_once_in_a_while(
    settled: Operator, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    original = settled.api.objects["Deployment", "support"]["spec"]
    message = "Deployment support: spec.replicas: 3 instead of 1"
    for seconds, events in ((0.0, 1), (SAME_REPAIR_SECONDS - 1, 1), (2.0, 2)):
        settled.now += seconds
        settled.edit("Deployment", spec={**original, "replicas": 3})
        await settled.reconcile()
        assert settled.api.applied == ["Deployment support"]
        assert settled.api.objects["Deployment", "support"]["spec"] == original
        assert settled.told() == [("DriftRepaired", message)] * events
    assert caplog.text.count(message) == 3
    settled.remove("Service")
    await settled.reconcile()
    assert settled.told()[-1] == ("DriftRepaired", "Service support: was deleted")


async def test_what_others_add_and_an_apply_leaves_is_no_repair(settled: Operator) -> None:
    metadata = settled.api.objects["Deployment", "support"]["metadata"]
    settled.edit("Deployment", metadata={**metadata, "finalizers": ["team.dev/theirs"]})
    await settled.reconcile()
    assert settled.api.applied == ["Deployment support"]
    assert settled.told() == []
    await settled.reconcile()
    assert settled.api.applied == []


async def test_a_status_that_somebody_else_wrote_is_set_right(settled: Operator) -> None:
    right = settled.status
    lie = {"type": "Ready", "status": "True", "reason": "AllReady", "lastTransitionTime": "2026-01-31T12:00:00Z"}
    settled.edit("AdapterDeployment", status={**right, "conditions": [lie], "url": "http://elsewhere"})
    await settled.reconcile()
    conditions = [{**found, "lastTransitionTime": None} for found in settled.status["conditions"]]
    assert conditions == [{**found, "lastTransitionTime": None} for found in right["conditions"]]
    assert settled.status["url"] == right["url"]


async def test_a_pool_for_which_there_is_no_room_is_told_so_and_made_once_there_is() -> None:
    operator = Operator()
    operator.store._room.most = 4_000
    operator.see({"adapters": [{**BILLING, "name": f"billing-{number}"} for number in range(100)]})
    await operator.reconcile()
    assert operator.condition("Stalled") == ("True", "TooLarge")
    assert operator.api.applied == []

    operator.store._room.most = 1_000_000
    await operator.reconcile()
    assert [without_hash(name) for name in operator.api.applied] == CHILDREN
    assert operator.condition("Stalled") == ("False", "NoFault")


async def test_events_about_one_pool_are_as_many_as_somebody_reads(settled: Operator) -> None:
    children = [key for key in settled.api.objects if key[0] != "AdapterDeployment"]
    assert len(children) * REPAIRS_AT_ONCE > 25
    for number in range(REPAIRS_AT_ONCE):
        for kind, name in children:
            body = settled.api.objects[kind, name]
            labels = {**body["metadata"]["labels"], f"label{number}": "foreign"}
            settled.store.put(kind, settled.api.put({**body, "metadata": {**body["metadata"], "labels": labels}}))
            await settled.reconcile()
            assert settled.api.applied == [f"{kind} {name}"], "what is not told is repaired all the same"
    assert len(settled.told()) == 25


async def test_a_change_of_the_spec_is_no_drift(settled: Operator) -> None:
    settled.see({"replicas": 2})
    await settled.reconcile()
    assert settled.api.applied == ["Deployment support"]
    assert settled.told() == []


async def test_a_pass_that_failed_is_run_again_later_and_later() -> None:
    operator = Operator()
    operator.api.faults["ConfigMap"] = [UnavailableError("no answer"), ConflictError("raced", 409)]
    working = asyncio.create_task(operator.reconciler.work())
    operator.now += 1
    wake(operator)
    for failures in (1, 2):
        await until(lambda: len(operator.api.faults["ConfigMap"]) == 2 - failures)  # noqa: B023 - awaited in this turn
        operator.now += RETRIES.seconds(failures) - 0.01
        wake(operator)
        await until(lambda: operator.followers.forgotten == 2 * failures)  # noqa: B023 - awaited in this turn
        assert operator.status == {}
        operator.now += 0.02
        wake(operator)
    await until(lambda: "conditions" in operator.status)
    working.cancel()
    await asyncio.gather(working, return_exceptions=True)


def wake(operator: Operator) -> None:
    """Have the queue look at the clock: another pool, which is not there, wants a pass at once."""
    operator.queue.mark(PoolKey("team", "other"), 0)
