"""The operator as a process, a real API server, real pods; in the pods a stub that speaks the runtime's contract."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator import objects
from graft_runtime.contract.adapter_set import AdapterSet

from tests.support.definition import install_definition
from tests.support.processes import free_port
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

STUB = Path(__file__).parent / "stub_runtime.py"
SECONDS = 40.0
BILLING = {"name": "billing", "uri": "pvc://shelf/billing"}
SQL = {"name": "sql", "uri": "pvc://shelf/sql"}


@dataclass
class Stage:
    """One namespace with an operator of its own."""

    cluster: LocalCluster
    namespace: str
    directory: Path
    operators: list[subprocess.Popen[bytes]] = field(default_factory=list)
    health_port: int = 0

    @property
    def flags(self) -> Path:
        return self.directory / "flags"

    @property
    def log(self) -> str:
        return (self.directory / "operator.log").read_text()

    def start_operator(self, *more: str) -> subprocess.Popen[bytes]:
        self.health_port = free_port()
        with (self.directory / "operator.log").open("ab") as log:
            process = subprocess.Popen(
                [
                    *(sys.executable, "-m", "graft_operator", "run", "--namespace", self.namespace),
                    *("--runtime-image", "stub", "--bind-address", "podIP", "--watch-namespace", self.namespace),
                    *("--signing-key-secret", "signing-key", "--health-address", "127.0.0.1"),
                    *("--health-port", str(self.health_port), "--allowed-pod-template-field", "containers.env", *more),
                ],
                env={**os.environ, "KUBECONFIG": str(self.cluster.kubeconfig)},
                stdout=log,
                stderr=log,
            )
        self.operators.append(process)
        return process

    def stop_operator(self, number: int = signal.SIGTERM) -> None:
        process = self.operators.pop()
        process.send_signal(number)
        process.wait(20)

    def apply(self, *adapters: dict[str, Any], **spec: Any) -> None:
        """Apply the pool `support`."""
        env = [
            {"name": "PATH", "value": f"/usr/bin:{self.directory}:/bin"},
            {"name": "STUB_FLAGS", "value": f"at:{self.flags}"},
        ]
        manifest = {
            "apiVersion": "graft.dev/v1alpha1",
            "kind": "AdapterDeployment",
            "metadata": {"name": "support", "namespace": self.namespace},
            "spec": {
                "replicas": 1,
                "baseModel": {"name": "base", "uri": "pvc://shelf/base"},
                "sources": [{"name": "shelf", "claimName": "shelf"}],
                "accelerator": {"count": 0},
                "terminationGracePeriodSeconds": 15,
                "adapters": list(adapters),
                "podTemplate": {"spec": {"containers": [{"name": "runtime", "env": env}]}},
                **spec,
            },
        }
        self.cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))

    def patch(self, *patches: dict[str, Any]) -> None:
        """JSON patches of the pool `support`."""
        self.kubectl("patch", "ad", "support", "--type=json", "-p", json.dumps(patches))

    def kubectl(self, *arguments: str, **more: Any) -> str:
        return self.cluster.kubectl("-n", self.namespace, *arguments, **more)

    def get(self, *arguments: str) -> Any:
        return self.cluster.get("-n", self.namespace, *arguments)

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.get("ad", "support").get("status", {})
        return found

    def conditions(self) -> dict[str, tuple[str, str]]:
        return {found["type"]: (found["status"], found["reason"]) for found in self.status().get("conditions", ())}

    def message(self, kind: str) -> str:
        found = (condition for condition in self.status()["conditions"] if condition["type"] == kind)
        return str(next(found).get("message", ""))

    def adapter(self, name: str) -> dict[str, Any]:
        found: dict[str, Any] = next(entry for entry in self.status()["adapters"] if entry["name"] == name)
        return found

    def pods(self) -> dict[str, Any]:
        """UIDs of the pods that aren't going away → restarts."""
        return {
            pod["metadata"]["uid"]: [status["restartCount"] for status in pod["status"].get("containerStatuses", ())]
            for pod in self.get("pods", "-l", "graft.dev/deployment=support")["items"]
            if "deletionTimestamp" not in pod["metadata"]
        }

    def sets(self) -> list[AdapterSet]:
        found = (objects.read_adapter_set(item) for item in self.get("configmaps")["items"])
        return [adapter_set for adapter_set in found if adapter_set is not None]

    def wait_ready(self) -> None:
        self.until(self.is_ready, "the pool to be Ready")

    def is_ready(self) -> bool:
        found = self.get("ad", "support")
        conditions = {entry["type"]: entry for entry in found.get("status", {}).get("conditions", ())}
        ready = conditions.get("Ready", {})
        return bool(ready.get("status") == "True" and ready["observedGeneration"] == found["metadata"]["generation"])

    def until(self, holds: Callable[[], bool], what: str, seconds: float = SECONDS) -> None:
        """Wait until it holds; what can't be asked now is asked again."""

        def how_it_stands() -> str:
            return f"{what}\n{yaml.safe_dump(self.status())}\n{self.log[-3000:]}"

        wait_until(holds, how_it_stands, seconds, retried=(LocalClusterError, StopIteration, KeyError))

    def reasons(self) -> list[str]:
        """Of the events about the pool."""
        events = self.get("events", "--field-selector", "involvedObject.name=support,source=graft-operator")["items"]
        return [event["reason"] for event in events]


@pytest.fixture
def stage(
    request: pytest.FixtureRequest, local_cluster: LocalCluster, namespace: str, tmp_path: Path
) -> Iterator[Stage]:
    """A stage whose operator runs, with further arguments where the test gives some."""
    install_definition(local_cluster)
    claim = {"accessModes": ["ReadWriteOnce"], "resources": {"requests": {"storage": "1Gi"}}}
    body = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "metadata": {"name": "shelf"}, "spec": claim}
    local_cluster.kubectl("-n", namespace, "apply", "-f", "-", input=json.dumps(body))
    program = tmp_path / "graft-runtime"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} {STUB} "$@"\n')
    program.chmod(0o755)
    found = Stage(local_cluster, namespace, tmp_path)
    found.flags.mkdir()
    found.start_operator(*getattr(request, "param", ()))
    yield found
    while found.operators:
        found.stop_operator(signal.SIGKILL)


def test_from_nothing_to_ready_and_adapters_come_and_go_without_touching_a_pod(stage: Stage) -> None:
    stage.apply(BILLING, SQL, replicas=2)
    stage.kubectl("wait", "--for=condition=Ready", "ad/support", "--timeout=60s")
    status = stage.status()
    assert (status["replicas"], status["readyReplicas"]) == (2, 2)
    assert status["adapterCounts"] == {"desired": 2, "ready": 2, "failed": 0}
    assert stage.conditions()["Stalled"] == ("False", "NoFault")
    pods, generation = stage.pods(), stage.sets()[0].generation

    new = {"name": "new", "uri": "pvc://shelf/moving-drifted"}
    stage.patch({"op": "add", "path": "/spec/adapters/-", "value": new})
    stage.wait_ready()
    assert stage.adapter("new")["readyReplicas"] == 2
    assert stage.adapter("new")["remapped"] == "nothing → model at the start of modules' names"
    assert "remapped" not in stage.adapter("sql")
    old = stage.adapter("new")["digest"]
    (stage.flags / "moved").touch()
    stage.kubectl("annotate", "ad", "support", "graft.dev/refresh=today")
    stage.until(lambda: stage.adapter("new")["digest"] != old, "other bytes to be found at the source")
    assert [version["digest"] for version in stage.adapter("new")["history"]] == [old]
    stage.patch({"op": "remove", "path": "/spec/adapters/0"})
    stage.wait_ready()
    assert [entry.name for entry in stage.sets()[0].adapters] == ["sql", "new"]
    assert stage.sets()[0].generation > generation
    assert stage.pods() == pods
    assert {"Ready", "AdapterReady", "AdapterRemapped", "AdapterRemoved"} <= set(stage.reasons())
    described = stage.kubectl("describe", "ad", "support")
    assert "Remapped:" in described
    assert "adapter `new` names its modules otherwise than its base model: nothing → model at the start" in described

    before = stage.get("ad", "support")["metadata"]["resourceVersion"]
    deployment = stage.get("deployment", "support")["metadata"]["resourceVersion"]
    stage.stop_operator(signal.SIGKILL)
    written, seen = stage.log.count("applied"), stage.log.count("a pass has ended over each pool")
    stage.start_operator()
    stage.until(lambda: stage.log.count("a pass has ended over each pool") > seen, "the pass of the next operator")
    stage.wait_ready()
    assert stage.log.count("applied") == written
    assert stage.get("ad", "support")["metadata"]["resourceVersion"] == before, "a restart changes nothing"
    assert stage.get("deployment", "support")["metadata"]["resourceVersion"] == deployment


def test_a_bad_adapter_is_told_and_blocks_no_other(stage: Stage) -> None:
    stage.apply(
        BILLING,
        {"name": "missing", "uri": "pvc://shelf/missing"},
        {"name": "misfit", "uri": "pvc://shelf/misfit"},
        {"name": "stray", "uri": "pvc://elsewhere/x"},
    )
    stage.until(lambda: stage.status()["adapterCounts"] == {"desired": 4, "ready": 1, "failed": 3}, "three faults")
    assert {name: stage.adapter(name)["reason"] for name in ("missing", "misfit", "stray")} == {
        "missing": "NotFound",
        "misfit": "RankTooHigh",
        "stray": "SourceNotDeclared",
    }
    wanted = {
        "Available": ("True", "BaseServed"),
        "Ready": ("False", "AdaptersFailed"),
        "Reconciling": ("False", "Settled"),
        "Stalled": ("True", "AdaptersFailed"),
    }
    stage.until(lambda: stage.conditions() == wanted, "the pod to be Ready beside the faults")
    assert "hint: put the adapter there" in stage.adapter("missing")["message"]
    # What was missing is found by itself once it is there.
    (stage.flags / "found").touch()
    stage.until(lambda: stage.adapter("missing")["readyReplicas"] == 1, "the adapter to be found")
    # A bad new version leaves the old one serving.
    digest = stage.adapter("billing")["digest"]
    (stage.flags / "found").unlink()
    stage.patch({"op": "replace", "path": "/spec/adapters/0/uri", "value": "pvc://shelf/missing-too"})
    stage.until(lambda: stage.adapter("billing").get("reason") == "NotFound", "the fault of the new version")
    assert (stage.adapter("billing")["digest"], stage.adapter("billing")["readyReplicas"]) == (digest, 1)


def test_drift_is_repaired_and_foreign_objects_are_refused(stage: Stage) -> None:
    stage.kubectl("create", "service", "clusterip", "support", "--tcp=80:80")
    stage.apply(BILLING)
    stage.until(lambda: stage.conditions()["Stalled"] == ("True", "ForeignObject"), "the refusal")
    assert "Service support exists already" in stage.message("Ready")
    stage.kubectl("delete", "service", "support")
    stage.wait_ready()
    assert stage.get("service", "support")["spec"]["ports"][0]["port"] == 8000

    stage.kubectl("scale", "deployment/support", "--replicas=3")
    stage.until(lambda: stage.get("deployment", "support")["spec"]["replicas"] == 1, "the replicas to be repaired")
    stage.until(lambda: "DriftRepaired" in stage.reasons(), "the Event about the repair")
    assert 'DriftRepaired: Deployment support: spec.replicas: 3 instead of 1"' in stage.log
    stage.kubectl("delete", "service", "support")
    stage.until(lambda: bool(stage.get("service", "support")), "the Service to come back")
    stage.kubectl("delete", "configmap", "--selector", "graft.dev/config-hash")
    stage.until(lambda: len(stage.sets()) == 1, "the adapter set to come back")
    stage.wait_ready()
    assert stage.sets()[0].adapters[0].digest == stage.adapter("billing")["digest"]

    stage.stop_operator()
    stage.kubectl("scale", "deployment/support", "--replicas=3")
    stage.kubectl("delete", "networkpolicy", "support")
    stage.start_operator()
    stage.until(lambda: stage.get("deployment", "support")["spec"]["replicas"] == 1, "the replicas of meanwhile")
    stage.until(lambda: bool(stage.get("networkpolicy", "support")), "the NetworkPolicy of meanwhile")


def test_what_is_added_to_an_object_or_taken_off_it_is_set_right(stage: Stage) -> None:
    stage.apply(BILLING, replicas=0)
    stage.until(lambda: stage.conditions()["Ready"] == ("False", "ScaledToZero"), "the pool without pods")
    before = stage.get("deployment", "support")
    inside = {
        "name": "runtime",
        "env": [{"name": "LD_PRELOAD", "value": "theirs"}],
        "securityContext": {"privileged": True, "allowPrivilegeEscalation": True},
    }
    pod = {"hostNetwork": True, "containers": [inside, {"name": "sidecar", "image": "theirs"}]}
    theirs = {"paused": True, "template": {"metadata": {"annotations": {"team.dev/note": "stays"}}, "spec": pod}}
    stage.kubectl("patch", "deployment", "support", "-p", json.dumps({"spec": theirs}))

    def spec() -> Any:
        return stage.get("deployment", "support")["spec"]

    before["spec"]["template"]["metadata"]["annotations"]["team.dev/note"] = "stays"
    stage.until(lambda: spec() == before["spec"], "what was added to be gone")

    def known_by(kind: str) -> Any:
        metadata = stage.get(kind, "support")["metadata"]
        return metadata["uid"], metadata.get("labels"), metadata.get("ownerReferences")

    def is_known_by(kind: str, wanted: Any) -> bool:
        return bool(known_by(kind) == wanted)

    for kind in ("deployment", "service"):
        wanted = known_by(kind)
        stage.kubectl("label", kind, "support", "graft.dev/deployment-")
        stage.until(partial(is_known_by, kind, wanted), f"the label of the {kind}")
        orphan = [{"op": "remove", "path": "/metadata/ownerReferences"}]
        stage.kubectl("patch", kind, "support", "--type=json", "-p", json.dumps(orphan))
        stage.until(partial(is_known_by, kind, wanted), f"the owner of the {kind}")
    stage.patch({"op": "replace", "path": "/spec/terminationGracePeriodSeconds", "value": 16})
    stage.until(lambda: spec()["template"]["spec"]["terminationGracePeriodSeconds"] == 16, "passes to go on")
    stage.until(lambda: stage.status()["observedGeneration"] == 2, "the status to follow")
    assert stage.conditions()["Stalled"] == ("False", "NoFault")
    assert set(stage.reasons()) & {"InvalidPodTemplate", "ForeignObject", "Contested"} == set()


def test_scale_suspend_and_delete(stage: Stage) -> None:
    stage.apply(BILLING)
    stage.wait_ready()
    stage.kubectl("scale", "ad/support", "--replicas=2")
    stage.until(lambda: stage.is_ready() and stage.status()["readyReplicas"] == 2, "two pods")
    stage.kubectl("scale", "ad/support", "--replicas=0")
    stage.until(lambda: stage.conditions()["Ready"] == ("False", "ScaledToZero") and not stage.pods(), "no pod")
    assert stage.conditions()["Available"] == ("False", "ScaledToZero")

    stage.patch({"op": "add", "path": "/spec/suspend", "value": True})
    stage.until(lambda: stage.conditions()["Ready"] == ("False", "Suspended"), "the suspension")
    stage.kubectl("delete", "service", "support")
    stage.patch({"op": "replace", "path": "/spec/suspend", "value": False})
    stage.until(lambda: bool(stage.get("service", "support")), "the Service to come back")

    # The next pool of the same name waits for the garbage collector and takes over nothing.
    before = stage.get("ad", "support")["metadata"]["uid"]
    stage.kubectl("delete", "ad", "support", "--wait=false")
    stage.apply(BILLING)
    stage.wait_ready()
    uid = stage.get("ad", "support")["metadata"]["uid"]
    assert uid != before
    assert {found.pool_uid for found in stage.sets()} == {uid}
    assert "ForeignObject" not in stage.reasons()

    assert "finalizers" not in stage.get("ad", "support")["metadata"]
    stage.kubectl("delete", "ad", "support", "--timeout=20s")
    stage.until(lambda: not stage.get("deployments")["items"], "the children to be collected")


def test_a_change_of_configuration_rolls_behind_readiness_and_cleans_up(stage: Stage) -> None:
    stage.apply(BILLING)
    stage.wait_ready()
    before = stage.pods()
    stage.patch({"op": "add", "path": "/spec/baseModel/task", "value": "SEQ_2_SEQ_LM"})
    stage.wait_ready()
    assert not stage.pods().keys() & before.keys()
    stage.until(
        lambda: len(stage.sets()) == 1 and len(stage.get("configmaps")["items"]) == 4, "the old ConfigMaps to go"
    )
    assert stage.sets()[0].adapters[0].digest, "the digest moved to the new configuration"

    before = stage.pods()
    stage.patch({"op": "replace", "path": "/spec/baseModel/uri", "value": "pvc://shelf/broken-base"})
    stage.until(lambda: stage.conditions()["Stalled"] == ("True", "NotAModel"), "the fault of the base model")
    assert stage.conditions()["Available"] == ("True", "BaseServed"), "the old pod serves on"
    assert before.items() <= stage.pods().items()


def test_a_roll_holds_rather_than_lose_an_adapter(stage: Stage) -> None:
    stage.apply(BILLING, {"name": "wide", "uri": "pvc://shelf/wide"})
    stage.wait_ready()
    before = stage.pods()
    stage.patch({"op": "add", "path": "/spec/engine", "value": {"maxRank": 8}})
    stage.until(lambda: stage.conditions()["Stalled"] == ("True", "RankTooHigh"), "the roll to hold")
    assert re.search(r"pod \S+ waits: it can't serve adapter `wide`", stage.message("Stalled"))
    assert stage.conditions()["Available"] == ("True", "BaseServed")
    assert stage.conditions()["Reconciling"] == ("False", "Settled")
    assert before.items() <= stage.pods().items(), "the old pod serves on"
    assert stage.status()["readyReplicas"] == 1

    stage.patch({"op": "remove", "path": "/spec/adapters/1"})  # what nobody wants any more holds no roll
    stage.wait_ready()
    assert not stage.pods().keys() & before.keys()
    stage.until(lambda: not any(entry.required for entry in stage.sets()[0].adapters), "nothing to be required")


def test_to_merged_mode_and_back(stage: Stage) -> None:
    stage.apply(BILLING, SQL)
    stage.wait_ready()
    hot = stage.pods()
    merge = {"name": "both", "adapters": [{"name": "billing", "weight": 0.5}, {"name": "new"}]}
    stage.apply({**BILLING, "scale": 3.0}, SQL, {"name": "new", "uri": "pvc://shelf/new"}, merge=merge)
    stage.wait_ready()
    status = stage.status()
    assert stage.conditions()["Available"] == ("True", "MergeServed")
    assert [(part["name"], part["weight"]) for part in status["merge"]["adapters"]] == [("billing", 1.5), ("new", 1)]
    assert status["adapterCounts"] == {"desired": 2, "ready": 2, "failed": 0}
    assert stage.adapter("sql")["reason"] == "PoolIsMerged"
    stage.until(lambda: [len(found.adapters) for found in stage.sets()] == [2], "the hot set to be gone")
    merged = stage.pods()
    assert not merged.keys() & hot.keys()
    stage.apply(BILLING, SQL)
    stage.wait_ready()
    assert stage.conditions()["Available"] == ("True", "BaseServed")
    assert "merge" not in stage.status()
    assert stage.status()["adapterCounts"] == {"desired": 2, "ready": 2, "failed": 0}
    stage.until(lambda: len(stage.pods()) == 1 and not stage.pods().keys() & merged.keys(), "the hot pod to be alone")


def test_a_pod_template_that_can_t_be_is_refused_and_adapters_stay_hot(stage: Stage) -> None:
    stage.apply(BILLING)
    stage.wait_ready()
    pods = stage.pods()
    tolerations = [{"key": "gpu", "operator": "Sometimes"}]
    stage.patch({"op": "add", "path": "/spec/podTemplate/spec/tolerations", "value": tolerations})
    stage.until(lambda: stage.conditions()["Stalled"] == ("True", "InvalidPodTemplate"), "the refusal")
    assert re.search(r"tolerations.*Sometimes", stage.message("Stalled"), re.DOTALL)
    stage.patch({"op": "add", "path": "/spec/adapters/-", "value": SQL})
    stage.until(lambda: stage.adapter("sql")["readyReplicas"] == 1, "an adapter beside the fault")
    assert stage.pods() == pods
    stage.patch({"op": "remove", "path": "/spec/podTemplate/spec/tolerations"})
    stage.wait_ready()
    assert stage.pods() == pods


def test_a_field_that_the_administrator_has_not_allowed_makes_no_pod(stage: Stage) -> None:
    host = {"volumes": [{"name": "host", "hostPath": {"path": "/"}}], "serviceAccountName": "admin"}
    stage.apply(BILLING, podTemplate={"spec": host})
    stage.until(lambda: stage.conditions()["Stalled"] == ("True", "FieldNotAllowed"), "the refusal")
    told = stage.message("Stalled")
    assert told == (
        "spec.podTemplate.spec.serviceAccountName is no field that pools may set\n"
        "  spec.podTemplate.spec.volumes.hostPath is no field that pools may set\n\n"
        "hint: leave it out, or have the administrator add serviceAccountName, volumes.hostPath to the chart's value"
        " allowedPodTemplateFields"
    )
    stage.until(lambda: " ".join(told.split()) in stage.log, "the same text in the log")
    assert stage.get("deployments")["items"] == []
    stage.apply(BILLING)
    stage.wait_ready()


LABELS = json.dumps({"graft.dev/usable": "true"})


@pytest.mark.parametrize(
    "stage", [("--allowed-claims", LABELS, "--allowed-secrets", LABELS)], indirect=True, ids=["labels"]
)
def test_what_a_pool_names_must_bear_the_administrator_s_labels(stage: Stage) -> None:
    hub = {"name": "hub", "uriPrefixes": ["hf://acme/"], "secretName": "hub", "endpoint": "https://hub.example"}
    stage.apply(BILLING, sources=[{"name": "shelf", "claimName": "shelf"}, hub])

    def is_refused(code: str, words: str) -> bool:
        return stage.conditions()["Stalled"] == ("True", code) and words in stage.message("Stalled")

    def changed(*command: str) -> None:
        """Change what the pool names, and mark the pool, since an operator may not watch Secrets."""
        stage.kubectl(*command)
        stage.kubectl("annotate", "--overwrite", "ad/support", f"looked-at={time.monotonic()}")

    stage.until(lambda: is_refused("FieldNotAllowed", "the PersistentVolumeClaim `shelf`, without"), "the claim")
    changed("label", "pvc", "shelf", "graft.dev/usable=true")
    stage.until(lambda: is_refused("FieldNotAllowed", "the Secret `hub`, which is not there"), "the Secret")
    account = {"kubernetes.io/service-account.name": "default"}
    metadata = {"name": "hub", "labels": {"graft.dev/usable": "true"}, "annotations": account}
    secret = {"apiVersion": "v1", "kind": "Secret", "type": "kubernetes.io/service-account-token", "metadata": metadata}
    secret["stringData"] = {"hosts": "hub.example"}
    stage.kubectl("apply", "-f", "-", input=json.dumps(secret))
    stage.kubectl("annotate", "--overwrite", "ad/support", "looked-at=account")
    stage.until(lambda: is_refused("TokenNotBound", "service account"), "its type")
    assert stage.get("deployments")["items"] == []
    stage.kubectl("delete", "secret", "hub")
    stage.kubectl("create", "secret", "generic", "hub", "--from-literal=token=hf_x", "--from-literal=hosts=a.example")
    changed("label", "secret", "hub", "graft.dev/usable=true")
    stage.until(lambda: is_refused("TokenNotBound", "names a.example"), "its hosts")
    changed("patch", "secret", "hub", "-p", json.dumps({"stringData": {"hosts": "a.example hub.example"}}))
    stage.wait_ready()
    assert "hf_x" not in stage.log


def test_an_image_that_can_t_be_had_is_told_at_once(stage: Stage) -> None:
    """No node here pulls images: what a kubelet would say is written into a pod that nobody schedules."""

    def kubelet_says(reason: str, message: str) -> None:
        (pod,) = stage.get("pods", "-l", "graft.dev/deployment=support")["items"]
        container = {"name": "runtime", "image": "stub", "imageID": "", "ready": False, "restartCount": 0}
        container["state"] = {"waiting": {"reason": reason, "message": message}}
        status = json.dumps({"status": {"containerStatuses": [container]}})
        stage.kubectl("patch", "pod", pod["metadata"]["name"], "--subresource=status", "--type=merge", "-p", status)

    stage.apply(BILLING, podTemplate={"spec": {"schedulerName": "nobody"}})
    stage.until(lambda: len(stage.pods()) == 1, "the pod")
    kubelet_says("ErrImagePull", "stub: not found")
    stage.until(lambda: stage.conditions()["Stalled"] == ("True", "PodsStuck"), "the kubelet's words")
    assert "ErrImagePull: stub: not found" in stage.message("Stalled")
    stage.until(lambda: "PodsStuck" in stage.reasons(), "the Event about it")
    kubelet_says("ContainerCreating", "")
    stage.until(lambda: stage.conditions()["Stalled"] == ("False", "NoFault"), "the image to be there")


def test_a_hung_pod_is_told_and_nothing_is_wedged(stage: Stage) -> None:
    stage.apply(BILLING)
    stage.wait_ready()
    (stage.flags / "hang").touch()
    stage.stop_operator(signal.SIGKILL)
    stage.start_operator()
    stage.until(lambda: stage.conditions()["Ready"] == ("False", "PodsUnreachable"), "the hung pod to be told")
    (stage.flags / "hang").unlink()
    stage.wait_ready()


def test_a_killed_runtime_comes_back_with_its_adapters(stage: Stage) -> None:
    stage.apply(BILLING)
    stage.wait_ready()
    pod = stage.get("pods", "-l", "graft.dev/deployment=support")["items"][0]["metadata"]
    killed = [
        int(entry.name)
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and is_stub(entry, pod["uid"].encode())
    ]
    assert killed
    for process in killed:
        os.kill(process, signal.SIGKILL)
    stage.until(lambda: stage.pods() == {pod["uid"]: [1]}, "the restart")
    stage.wait_ready()
    assert stage.adapter("billing")["readyReplicas"] == 1


def is_stub(process: Path, uid: bytes) -> bool:
    try:
        arguments = (process / "cmdline").read_bytes().split(b"\0")
    except OSError:
        return False
    return str(STUB).encode() in arguments and uid in arguments


def test_the_operator_answers_probes_and_ends_fast(stage: Stage) -> None:
    stage.apply(BILLING)
    stage.wait_ready()
    base = f"http://127.0.0.1:{stage.health_port}"
    for path, expected in (
        ("/livez", "ok"),
        ("/readyz", "ok"),
        ("/metrics", 'graft_operator_passes_total{result="succ'),
    ):
        with urllib.request.urlopen(base + path, timeout=5) as response:
            assert expected in response.read().decode()
    started = time.monotonic()
    process = stage.operators[-1]
    stage.stop_operator(signal.SIGTERM)
    assert time.monotonic() - started < 4
    assert process.returncode == 0
    assert "Traceback" not in stage.log


def test_a_revision_becomes_a_commit_that_the_set_and_the_status_name(stage: Stage) -> None:
    commits = {name: hashlib.sha1(name.encode()).hexdigest() for name in ("v1", "v2")}
    sources = [
        {"name": "shelf", "claimName": "shelf"},
        {"name": "hub", "uriPrefixes": ["hf://acme/"], "secretName": "hub"},
    ]
    stage.apply({"name": "law", "uri": "hf://acme/law", "revision": "v1"}, sources=sources)
    stage.wait_ready()  # without its Secret: pods start, and would tell what can't be read
    told = stage.adapter("law")
    assert (told["requestedRevision"], told["revision"]) == ("v1", commits["v1"])
    assert stage.sets()[0].adapters[0].revision == commits["v1"]
    pods = stage.pods()

    stage.kubectl("create", "secret", "generic", "hub", "--from-literal=token=hf_secret", "--from-literal=other=x")
    stage.patch({"op": "replace", "path": "/spec/adapters/0/revision", "value": "v2"})
    stage.until(lambda: stage.adapter("law").get("revision") == commits["v2"], "the other commit")
    stage.wait_ready()
    assert stage.pods() == pods
    assert "hf_secret" not in stage.log


def attach(stage: Stage, name: str, /, uri: str = "pvc://shelf/sql", **spec: Any) -> None:
    """Apply an Adapter that names the pool `support`."""
    manifest = {
        "apiVersion": "graft.dev/v1alpha1",
        "kind": "Adapter",
        "metadata": {"name": name, "namespace": stage.namespace},
        "spec": {"adapterDeploymentName": "support", "uri": uri, **spec},
    }
    stage.cluster.kubectl("apply", "-f", "-", input=json.dumps(manifest))


def test_adapters_attach_to_a_pool_and_leave_it_and_tell_of_themselves(stage: Stage) -> None:
    attach(stage, "sql")
    stage.kubectl("wait", "--for=jsonpath={.status.reason}=PoolNotFound", "adapter/sql", "--timeout=30s")
    stage.apply(BILLING)
    stage.kubectl("wait", "--for=condition=Ready", "adapter/sql", "ad/support", "--timeout=60s")
    pods = stage.pods()
    row = stage.kubectl("get", "adapters", "sql").splitlines()
    assert row[0].split() == ["NAME", "POOL", "MODEL", "PODS", "READY", "PODS", "READY", "REASON", "AGE"]
    assert row[1].split()[:7] == ["sql", "support", "sql", "1", "1", "True", "AllReady"]
    assert stage.status()["adapterCounts"] == {"desired": 2, "ready": 2, "failed": 0}
    chosen = stage.get("adapters", "--field-selector", "spec.adapterDeploymentName=support")["items"]
    assert [adapter["metadata"]["name"] for adapter in chosen] == ["sql"]
    with pytest.raises(LocalClusterError, match=r"spec\.adapterDeploymentName can't be changed"):
        attach(stage, "sql", adapterDeploymentName="other")

    attach(stage, "mine", name="billing")
    attach(stage, "misfit", "pvc://shelf/misfit")
    stage.kubectl("wait", "--for=condition=Stalled", "adapter/mine", "adapter/misfit", "--timeout=30s")
    assert "an entry of spec.adapters of AdapterDeployment support" in stage.get("adapter", "mine")["status"]["message"]
    events = stage.get("events", "--field-selector", "involvedObject.kind=Adapter")["items"]
    assert {("sql", "Ready"), ("mine", "NameTaken")} <= {
        (event["involvedObject"]["name"], event["reason"]) for event in events
    }
    assert stage.conditions()["Ready"] == ("True", "AllReady"), "a team's bad Adapter stalls nobody else"

    before = {name: stage.get("adapter", name)["metadata"]["resourceVersion"] for name in ("sql", "mine", "misfit")}
    stage.stop_operator(signal.SIGKILL)
    seen = stage.log.count("a pass has ended over each pool")
    stage.start_operator()
    stage.until(lambda: stage.log.count("a pass has ended over each pool") > seen, "the pass of the next operator")
    after = {name: stage.get("adapter", name)["metadata"]["resourceVersion"] for name in before}
    assert after == before, "a restart writes nothing"

    stage.kubectl("delete", "adapter", "sql", "misfit", "--timeout=10s")
    stage.until(lambda: [entry.name for entry in stage.sets()[0].adapters] == ["billing"], "the set without them")
    stage.until(lambda: stage.status()["adapterCounts"]["desired"] == 1, "the counts without them")
    assert stage.pods() == pods
