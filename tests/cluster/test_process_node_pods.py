"""Pods on the process node, as the API server and their processes see them."""

from __future__ import annotations

import contextlib
import http.client
import json
import ssl
import time
from pathlib import Path
from typing import Any, TypeVar

import pytest
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_process_node.container_process import MARKER

from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster
T = TypeVar("T")

POD_IP = {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
WAIT_FOR_EVER = ["sh", "-c", "while true; do sleep 0.1; done"]


class Namespace:
    """A namespace, and how it looks."""

    def __init__(self, cluster: LocalCluster, name: str) -> None:
        self.cluster = cluster
        self.name = name

    def apply(self, *manifests: dict[str, Any]) -> None:
        listed = {"apiVersion": "v1", "kind": "List", "items": list(manifests)}
        self.cluster.kubectl("apply", "-n", self.name, "-f", "-", input=json.dumps(listed))

    def get(self, *arguments: str) -> Any:
        return self.cluster.get("-n", self.name, *arguments)

    def pod(self, name: str) -> Any:
        return self.get("pod", name)

    def container(self, pod_name: str) -> Any:
        return (self.pod(pod_name)["status"].get("containerStatuses") or [{}])[0]

    def wait(self, pod_name: str, condition: str, seconds: int = 20) -> None:
        self.cluster.kubectl("wait", "-n", self.name, f"pod/{pod_name}", f"--for={condition}", f"--timeout={seconds}s")

    def logs(self, *arguments: str) -> str:
        return self.cluster.kubectl("logs", "-n", self.name, *arguments)

    def events(self, pod_name: str, reason: str) -> list[str]:
        selector = f"involvedObject.name={pod_name},reason={reason}"
        return [event["message"] for event in self.get("events", "--field-selector", selector)["items"]]

    def delete_pod(self, name: str, *arguments: str) -> None:
        self.cluster.kubectl("delete", "-n", self.name, "pod", name, *arguments)


@pytest.fixture
def space(local_cluster: LocalCluster, namespace: str) -> Namespace:
    return Namespace(local_cluster, namespace)


def pod(name: str, *command: str, spec: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    main = {"name": "main", "image": "ignored", "command": list(command), **container}
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": {"app": name}},
        "spec": {"terminationGracePeriodSeconds": 1, "containers": [main], **(spec or {})},
    }


def once(name: str, *command: str, spec: dict[str, Any] | None = None, **container: Any) -> dict[str, Any]:
    return pod(name, *command, spec={"restartPolicy": "Never", **(spec or {})}, **container)


def config_map(name: str, **data: str) -> dict[str, Any]:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def marked_processes(uid: str) -> list[int]:
    """The living processes of a pod."""
    found = []
    for entry in Path("/proc").iterdir():
        try:
            if entry.name.isdigit() and f"{uid}:" in _marker((entry / "environ").read_bytes()):
                found.append(int(entry.name))
        except OSError:
            continue
    return found


def _marker(environment: bytes) -> str:
    parts = environment.decode(errors="replace").split("\0")
    return next((part for part in parts if part.startswith(MARKER)), "")


def test_a_pods_process_is_made_from_its_spec(space: Namespace) -> None:
    script = 'echo "$@"; echo $COLOUR $S_pin $CPU; cat $1/colour; echo; cat $2/from-init; pwd'
    space.apply(
        config_map("settings", colour="green"),
        {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"}, "stringData": {"pin": "1234"}},
        once(
            "made",
            "sh",
            "-c",
            script,
            "main",
            args=["/settings", "/data", "$(POD_IP)"],
            workingDir="/data",
            env=[
                POD_IP,
                {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
                {"name": "CPU", "valueFrom": {"resourceFieldRef": {"resource": "requests.cpu", "divisor": "1m"}}},
            ],
            envFrom=[{"prefix": "S_", "secretRef": {"name": "keys"}}],
            resources={"requests": {"cpu": "50m"}},
            volumeMounts=[{"name": "settings", "mountPath": "/settings"}, {"name": "data", "mountPath": "/data"}],
            spec={
                "initContainers": [
                    {
                        "name": f"step-{number}",
                        "image": "ignored",
                        "command": ["sh", "-c", f"echo {number} >> $0/from-init", "/data"],
                        "volumeMounts": [{"name": "data", "mountPath": "/data"}],
                    }
                    for number in (1, 2)
                ],
                "volumes": [{"name": "settings", "configMap": {"name": "settings"}}, {"name": "data", "emptyDir": {}}],
            },
        ),
    )
    space.wait("made", "jsonpath={.status.phase}=Succeeded")

    status = space.pod("made")["status"]
    uid = space.pod("made")["metadata"]["uid"]
    volumes = space.cluster.state / "pods" / uid / "volumes"
    assert space.logs("made", "-c", "main").splitlines() == [
        f"{volumes}/settings {volumes}/data {status['podIP']}",
        "green 1234 50",
        "green",
        "1",
        "2",
        f"{volumes}/data",
    ]
    assert status["podIP"].startswith("127.")
    assert [one["state"]["terminated"]["reason"] for one in status["initContainerStatuses"]] == ["Completed"] * 2


def test_a_pod_is_ready_when_its_probes_say_so(space: Namespace) -> None:
    serve = ["python", "-m", "http.server", "--bind", "$(POD_IP)", "8000"]
    probe = {"httpGet": {"path": "/", "port": "http"}, "periodSeconds": 1}
    space.apply(
        pod(
            "web",
            *serve,
            env=[POD_IP],
            ports=[{"name": "http", "containerPort": 8000}],
            startupProbe={**probe, "failureThreshold": 30},
            readinessProbe=probe,
            livenessProbe={"tcpSocket": {"port": "http"}, "periodSeconds": 1},
        )
    )
    space.wait("web", "condition=Ready")

    found = space.pod("web")
    assert {one["type"]: one["status"] for one in found["status"]["conditions"]} == {
        "PodScheduled": "True",
        "PodReadyToStartContainers": "True",
        "Initialized": "True",
        "ContainersReady": "True",
        "Ready": "True",
    }
    assert found["status"]["containerStatuses"][0]["restartCount"] == 0
    assert found["status"]["hostIP"] == str(space.cluster.network.node_address)


def test_readiness_comes_and_goes_and_a_failed_liveness_probe_restarts(space: Namespace) -> None:
    def probe(file: str) -> dict[str, Any]:
        return {"exec": {"command": ["cat", f"/data/{file}"]}, "periodSeconds": 1, "failureThreshold": 1}

    space.apply(
        pod(
            "moody",
            "sh",
            "-c",
            "touch $0/alive $0/ready; while true; do sleep 0.1; done",
            "/data",
            volumeMounts=[{"name": "data", "mountPath": "/data"}],
            startupProbe={**probe("alive"), "failureThreshold": 30},
            readinessProbe=probe("ready"),
            livenessProbe=probe("alive"),
            spec={"volumes": [{"name": "data", "emptyDir": {}}]},
        )
    )
    space.wait("moody", "condition=Ready")
    data = space.cluster.state / "pods" / space.pod("moody")["metadata"]["uid"] / "volumes" / "data"

    (data / "ready").unlink()
    space.wait("moody", "condition=Ready=false")
    assert space.container("moody")["restartCount"] == 0

    (data / "alive").unlink()
    wait_until(lambda: space.container("moody").get("restartCount") == 1, "a restart")
    space.wait("moody", "condition=Ready")
    assert space.container("moody")["lastState"]["terminated"]["signal"] == 15
    assert any("failed liveness probe" in message for message in space.events("moody", "Killing"))


def test_a_config_map_that_changes_changes_its_files(space: Namespace) -> None:
    mounts = [{"name": "settings", "mountPath": "/settings"}, {"name": "later", "mountPath": "/later"}]
    volumes = [
        {"name": "settings", "configMap": {"name": "settings"}},
        {"name": "later", "configMap": {"name": "later", "optional": True}},
    ]
    space.apply(
        config_map("settings", a="1"),
        pod("reader", *WAIT_FOR_EVER, volumeMounts=mounts, spec={"volumes": volumes}),
    )
    space.wait("reader", "condition=Ready")
    place = space.cluster.state / "pods" / space.pod("reader")["metadata"]["uid"] / "volumes"
    assert (place / "settings" / "a").read_text() == "1"
    assert list((place / "later").glob("[!.]*")) == []

    space.apply(config_map("settings", b="2"), config_map("later", c="3"))
    changed = time.monotonic()
    wait_until(lambda: (place / "settings" / "b").exists() and (place / "later" / "c").exists(), "the new files")

    assert time.monotonic() - changed < 2.0
    assert (place / "settings" / "b").read_text() == "2"
    assert not (place / "settings" / "a").exists()
    assert space.container("reader")["restartCount"] == 0


def test_a_mount_inside_an_empty_directory_and_a_new_sub_path(space: Namespace) -> None:
    mounts = [
        {"name": "scratch", "mountPath": "/tmp"},
        {"name": "settings", "mountPath": "/tmp/settings"},
        {"name": "scratch", "mountPath": "/work", "subPath": "of/work"},
    ]
    volumes = [{"name": "scratch", "emptyDir": {}}, {"name": "settings", "configMap": {"name": "settings"}}]
    script = "cat $TMPDIR/settings/a; touch $0/done; ls $TMPDIR/of/work"
    space.apply(
        config_map("settings", a="one\n"),
        once("nested", "sh", "-c", script, "/work", volumeMounts=mounts, spec={"volumes": volumes}),
    )

    space.wait("nested", "jsonpath={.status.phase}=Succeeded")

    assert space.logs("nested") == "one\ndone\n"


def test_a_pod_waits_for_a_config_map_that_is_not_there_yet(space: Namespace) -> None:
    mount = {"name": "settings", "mountPath": "/settings"}
    volume = {"name": "settings", "configMap": {"name": "late"}}
    space.apply(pod("early", *WAIT_FOR_EVER, volumeMounts=[mount], spec={"volumes": [volume]}))
    wait_until(lambda: space.events("early", "FailedMount"), "an event")
    assert space.container("early")["state"] == {"waiting": {"reason": "ContainerCreating"}}
    assert f"ConfigMap {space.name}/late not found" in space.events("early", "FailedMount")[0]

    space.apply(config_map("late", a="1"))

    space.wait("early", "condition=Ready", seconds=5)


def test_a_container_waits_for_what_its_environment_needs(space: Namespace) -> None:
    source = {"configMapKeyRef": {"name": "late", "key": "a"}}
    space.apply(pod("early", *WAIT_FOR_EVER, env=[{"name": "A", "valueFrom": source}]))
    waiting = wait_until(
        lambda: space.container("early").get("state", {}).get("waiting", {}).get("message"), "a reason"
    )
    assert waiting == f"ConfigMap {space.name}/late not found"

    space.apply(config_map("late", a="1"))

    space.wait("early", "condition=Ready")


def test_what_is_not_supported_is_refused_by_name(space: Namespace) -> None:
    space.apply(pod("strange", "true", spec={"hostNetwork": True}, tty=True))

    space.wait("strange", "jsonpath={.status.phase}=Failed")
    status = space.pod("strange")["status"]
    assert status["reason"] == "Unsupported"
    assert "spec.hostNetwork: not supported by this node" in status["message"]
    wait_until(lambda: len(space.events("strange", "Unsupported")) == 2, "two events")
    messages = space.events("strange", "Unsupported")
    assert "spec.containers[0].tty: not supported by this node" in messages


def test_what_is_not_enforced_is_told_once(space: Namespace) -> None:
    policy = {
        "apiVersion": "networking.k8s.io/v1",
        "kind": "NetworkPolicy",
        "metadata": {"name": "closed"},
        "spec": {"podSelector": {"matchLabels": {"app": "limited"}}, "policyTypes": ["Ingress"]},
    }
    space.apply(policy)
    limits = {"limits": {"memory": "64Mi"}}
    space.apply(pod("limited", *WAIT_FOR_EVER, resources=limits, securityContext={"runAsNonRoot": True}))

    space.wait("limited", "condition=Ready")

    (message,) = wait_until(lambda: space.events("limited", "Unenforced"), "an event")
    for part in ("[0].image", "[0].securityContext", "[0].resources.limits", "NetworkPolicy closed"):
        assert part in message


def test_a_container_that_crashes_backs_off(space: Namespace) -> None:
    space.apply(pod("crash", "sh", "-c", "echo said; echo why > $0; exit 3", "/dev/termination-log"))

    def backs_off() -> Any:
        found = space.container("crash")
        return found if found.get("state", {}).get("waiting", {}).get("reason") == "CrashLoopBackOff" else None

    found = wait_until(backs_off, "CrashLoopBackOff")

    assert found["restartCount"] == 1
    ended = found["lastState"]["terminated"]
    assert (ended["exitCode"], ended["reason"], ended["message"]) == (3, "Error", "why\n")
    assert space.logs("crash") == "said\n"
    assert space.logs("crash", "--previous") == "said\n"
    assert space.pod("crash")["status"]["phase"] == "Running"


def test_a_program_that_is_not_there_is_named(space: Namespace) -> None:
    space.apply(once("typo", "grfat-runtime"))

    space.wait("typo", "jsonpath={.status.phase}=Failed")
    ended = space.container("typo")["state"]["terminated"]
    assert (ended["exitCode"], ended["reason"]) == (128, "StartError")
    assert ended["message"] == "grfat-runtime: No such file or directory"


def test_a_failed_init_container_ends_a_pod_that_never_restarts(space: Namespace) -> None:
    init = {"name": "first", "image": "ignored", "command": ["sh", "-c", "echo no luck; exit 4"]}
    space.apply(once("unlucky", "true", spec={"initContainers": [init]}))

    space.wait("unlucky", "jsonpath={.status.phase}=Failed")
    status = space.pod("unlucky")["status"]
    assert status["initContainerStatuses"][0]["state"]["terminated"]["exitCode"] == 4
    assert status["containerStatuses"][0]["state"] == {"waiting": {"reason": "PodInitializing"}}
    assert space.logs("unlucky", "-c", "first") == "no luck\n"


def test_a_pod_ends_at_its_deadline(space: Namespace) -> None:
    space.apply(once("slow", *WAIT_FOR_EVER, spec={"activeDeadlineSeconds": 1}))

    space.wait("slow", "jsonpath={.status.phase}=Failed")

    assert space.pod("slow")["status"]["reason"] == "DeadlineExceeded"
    assert marked_processes(space.pod("slow")["metadata"]["uid"]) == []


def test_a_deleted_pod_gets_its_hook_and_its_time_and_leaves_nothing(space: Namespace, tmp_path: Path) -> None:
    stubborn = f"trap 'echo told >> {tmp_path}/told' TERM; sleep 99 & setsid sleep 99 & while true; do sleep 0.1; done"
    hook = {"preStop": {"exec": {"command": ["sh", "-c", f"echo hook >> {tmp_path}/told"]}}}
    space.apply(pod("stubborn", "sh", "-c", stubborn, lifecycle=hook, spec={"terminationGracePeriodSeconds": 2}))
    space.wait("stubborn", "condition=Ready")
    uid = space.pod("stubborn")["metadata"]["uid"]
    assert len(marked_processes(uid)) >= 3

    begun = time.monotonic()
    space.delete_pod("stubborn")
    took = time.monotonic() - begun

    assert 1.5 < took < 15
    assert (tmp_path / "told").read_text().split() == ["hook", "told"]
    assert marked_processes(uid) == []
    wait_until(lambda: not (space.cluster.state / "pods" / uid).exists(), "the pod's directory is removed")


def test_a_pod_that_is_forced_away_is_killed_at_once(space: Namespace) -> None:
    ignore = "trap '' TERM; while true; do sleep 0.1; done"
    space.apply(pod("stubborn", "sh", "-c", ignore, spec={"terminationGracePeriodSeconds": 60}))
    space.wait("stubborn", "condition=Ready")
    uid = space.pod("stubborn")["metadata"]["uid"]

    space.delete_pod("stubborn", "--force", "--grace-period=0")

    wait_until(lambda: marked_processes(uid) == [], "its processes are gone", seconds=5)


def test_a_claim_is_a_directory(space: Namespace) -> None:
    directory = space.cluster.claim_directory(space.name, "shelf")
    (directory / "before").write_text("here before")
    claim = {
        "apiVersion": "v1",
        "kind": "PersistentVolumeClaim",
        "metadata": {"name": "shelf"},
        "spec": {"accessModes": ["ReadWriteMany"], "resources": {"requests": {"storage": "1Gi"}}},
    }
    space.apply(
        claim,
        once(
            "reader",
            "sh",
            "-c",
            "cat $0/before; echo after > $0/after",
            "/shelf",
            volumeMounts=[{"name": "shelf", "mountPath": "/shelf"}],
            spec={"volumes": [{"name": "shelf", "persistentVolumeClaim": {"claimName": "shelf"}}]},
        ),
    )

    space.wait("reader", "jsonpath={.status.phase}=Succeeded")

    assert space.logs("reader") == "here before"
    assert (directory / "after").read_text() == "after\n"
    volume = space.get("persistentvolumeclaim", "shelf")["spec"]["volumeName"]
    space.delete_pod("reader")
    space.cluster.kubectl("delete", "-n", space.name, "persistentvolumeclaim", "shelf")

    def is_gone() -> bool:
        return not space.cluster.kubectl("get", "persistentvolume", volume, "--ignore-not-found")

    wait_until(is_gone, "the volume is removed")
    assert (directory / "after").exists()


def test_a_pod_speaks_to_the_api_as_its_service_account(space: Namespace) -> None:
    ask = [str(space.cluster.kubectl_binary), "auth", "whoami", "-o", "jsonpath={.status.userInfo.username}"]
    without = {"automountServiceAccountToken": False}
    space.apply(once("with", *ask), once("without", "sh", "-c", "echo [$KUBECONFIG]", spec=without))
    space.wait("with", "jsonpath={.status.phase}=Succeeded")
    space.wait("without", "jsonpath={.status.phase}=Succeeded")

    assert space.logs("with") == f"system:serviceaccount:{space.name}:default"
    assert space.logs("without") == "[]\n"


def test_logs_can_be_followed(space: Namespace) -> None:
    count = "for i in 1 2 3 4 5; do echo $i; sleep 0.2; done"
    space.apply(once("counter", "sh", "-c", count))
    wait_until(lambda: space.container("counter").get("state", {}).get("running"), "it runs")

    assert space.logs("counter", "--follow") == "1\n2\n3\n4\n5\n"
    assert space.logs("counter", "--tail=2") == "4\n5\n"
    moment, _, line = space.logs("counter", "--tail=1", "--timestamps").partition(" ")
    assert (moment[-1], line) == ("Z", "5\n")


def test_logs_of_a_container_that_waits_say_why(space: Namespace) -> None:
    volume = {"name": "v", "configMap": {"name": "never"}}
    space.apply(pod("waits", "true", spec={"volumes": [volume]}))
    wait_until(lambda: space.events("waits", "FailedMount"), "an event")

    with pytest.raises(LocalClusterError, match="waiting to start: ContainerCreating"):
        space.logs("waits")


def test_logs_are_for_the_clusters_own_callers(local_cluster: LocalCluster) -> None:
    (node,) = local_cluster.get("nodes")["items"]
    port = node["status"]["daemonEndpoints"]["kubeletEndpoint"]["Port"]
    address = node["status"]["addresses"][0]["address"]
    anyone = http.client.HTTPSConnection(address, port, timeout=10, context=ssl._create_unverified_context())

    def call() -> None:
        anyone.request("GET", "/healthz")
        anyone.getresponse()

    with contextlib.closing(anyone), pytest.raises((ssl.SSLError, http.client.RemoteDisconnected)):
        call()


def test_a_deleted_pod_that_someone_keeps_is_ended_and_left_alone(space: Namespace) -> None:
    kept = pod("kept", *WAIT_FOR_EVER)
    kept["metadata"]["finalizers"] = ["acme.example/keep"]
    space.apply(kept)
    space.wait("kept", "condition=Ready")
    uid = space.pod("kept")["metadata"]["uid"]

    space.delete_pod("kept", "--wait=false")

    wait_until(lambda: space.pod("kept")["status"]["phase"] == "Failed", "it is told as ended")
    wait_until(lambda: not (space.cluster.state / "pods" / uid).exists(), "the pod's directory is removed")
    space.cluster.kubectl("label", "-n", space.name, "pod", "kept", "seen=yes")  # a change starts nothing again
    assert marked_processes(uid) == []
    space.cluster.kubectl("patch", "-n", space.name, "pod", "kept", "-p", '{"metadata":{"finalizers":null}}')
    wait_until(lambda: not space.get("pods")["items"], "it is gone")


def test_a_shell_in_a_pod_is_refused_in_words(space: Namespace) -> None:
    space.apply(pod("web", *WAIT_FOR_EVER))
    space.wait("web", "condition=Ready")

    with pytest.raises(LocalClusterError, match="not supported by this node"):
        space.cluster.kubectl("exec", "-n", space.name, "web", "--", "true")
