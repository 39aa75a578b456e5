"""Which pods the process node takes, and what it says about the rest."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graft_process_node.field_check import Each, Fields, Rule, Unenforced
from graft_process_node.pod_fields import POD_SPEC, check_pod

# What the API server fills in by itself.
DEFAULTS = {
    "dnsPolicy": "ClusterFirst",
    "enableServiceLinks": True,
    "preemptionPolicy": "PreemptLowerPriority",
    "priority": 0,
    "restartPolicy": "Always",
    "schedulerName": "default-scheduler",
    "securityContext": {},
    "serviceAccount": "default",
    "serviceAccountName": "default",
    "terminationGracePeriodSeconds": 30,
    "nodeName": "local",
    "tolerations": [{"effect": "NoExecute", "key": "node.kubernetes.io/not-ready", "operator": "Exists"}],
    "volumes": [
        {
            "name": "kube-api-access",
            "projected": {
                "defaultMode": 420,
                "sources": [
                    {"serviceAccountToken": {"expirationSeconds": 3607, "path": "token"}},
                    {"configMap": {"items": [{"key": "ca.crt", "path": "ca.crt"}], "name": "kube-root-ca.crt"}},
                    {"downwardAPI": {"items": [{"path": "n", "fieldRef": {"fieldPath": "metadata.namespace"}}]}},
                ],
            },
        }
    ],
}
CONTAINER = {
    "name": "main",
    "image": "busybox",
    "imagePullPolicy": "Always",
    "command": ["true"],
    "resources": {},
    "terminationMessagePath": "/dev/termination-log",
    "terminationMessagePolicy": "File",
}


def pod(container: dict[str, Any] | None = None, **spec: Any) -> dict[str, Any]:
    return {"spec": {**DEFAULTS, "containers": [{**CONTAINER, **(container or {})}], **spec}}


def test_a_plain_pod_with_all_defaults_is_taken_and_only_its_image_is_not_enforced() -> None:
    found = check_pod(pod())

    assert found.refused == ()
    assert found.unenforced == ("spec.containers[0].image",)


@pytest.mark.parametrize(
    ("spec", "path"),
    [
        ({"hostNetwork": True}, "spec.hostNetwork"),
        ({"hostPID": True}, "spec.hostPID"),
        ({"hostIPC": True}, "spec.hostIPC"),
        ({"shareProcessNamespace": True}, "spec.shareProcessNamespace"),
        ({"hostAliases": [{"ip": "1.2.3.4"}]}, "spec.hostAliases"),
        ({"hostname": "me"}, "spec.hostname"),
        ({"subdomain": "us"}, "spec.subdomain"),
        ({"runtimeClassName": "gvisor"}, "spec.runtimeClassName"),
        ({"dnsPolicy": "None"}, "spec.dnsPolicy"),
        ({"dnsConfig": {"nameservers": ["1.2.3.4"]}}, "spec.dnsConfig"),
        ({"ephemeralContainers": [{"name": "debug"}]}, "spec.ephemeralContainers"),
        ({"resourceClaims": [{"name": "gpu"}]}, "spec.resourceClaims"),
        ({"os": {"name": "windows"}}, "spec.os.name"),
        ({"somethingOfTomorrow": 1}, "spec.somethingOfTomorrow"),
        ({"volumes": [{"name": "v", "nfs": {"server": "s", "path": "/"}}]}, "spec.volumes[0].nfs"),
        ({"volumes": [{"name": "v", "ephemeral": {"x": 1}}]}, "spec.volumes[0].ephemeral"),
        ({"volumes": [{"name": "v", "hostPath": {"path": "/x", "type": "Socket"}}]}, "spec.volumes[0].hostPath.type"),
        ({"initContainers": [{**CONTAINER, "restartPolicy": "Always"}]}, "spec.initContainers[0].restartPolicy"),
    ],
)
def test_a_field_of_the_pod_that_is_not_supported_is_named(spec: dict[str, Any], path: str) -> None:
    found = check_pod(pod(**spec))

    assert [refusal.partition(":")[0] for refusal in found.refused] == [path]


@pytest.mark.parametrize(
    ("container", "path"),
    [
        ({"tty": True}, "tty"),
        ({"stdin": True}, "stdin"),
        ({"command": None}, "command"),
        ({"ports": [{"containerPort": 53, "protocol": "UDP"}]}, "ports[0].protocol"),
        ({"ports": [{"containerPort": 80, "hostPort": 80}]}, "ports[0].hostPort"),
        ({"lifecycle": {"postStart": {"exec": {"command": ["true"]}}}}, "lifecycle.postStart"),
        ({"lifecycle": {"stopSignal": "SIGINT"}}, "lifecycle.stopSignal"),
        ({"livenessProbe": {"grpc": {"port": 1}}}, "livenessProbe.grpc"),
        ({"volumeDevices": [{"name": "v", "devicePath": "/d"}]}, "volumeDevices"),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/v", "mountPropagation": "Bidirectional"}]},
            "volumeMounts[0].mountPropagation",
        ),
        (
            {"volumeMounts": [{"name": "v", "mountPath": "/v"}, {"name": "w", "mountPath": "/v/w"}]},
            "volumeMounts[1].mountPath",
        ),
        ({"env": [{"name": "A", "valueFrom": {"fileKeyRef": {"path": "x"}}}]}, "env[0].valueFrom.fileKeyRef"),
    ],
)
def test_a_field_of_a_container_that_is_not_supported_is_named(container: dict[str, Any], path: str) -> None:
    found = check_pod(pod(container))

    assert [refusal.partition(":")[0] for refusal in found.refused] == [f"spec.containers[0].{path}"]


def test_a_value_that_is_refused_is_told_with_the_ones_that_are_not() -> None:
    (refusal,) = check_pod(pod(dnsPolicy="ClusterFirstWithHostNet")).refused

    assert refusal == (
        "spec.dnsPolicy: 'ClusterFirstWithHostNet' isn't supported by this node, only 'ClusterFirst' or 'Default'"
    )


def test_what_is_accepted_without_effect_is_listed() -> None:
    container = {"securityContext": {"runAsNonRoot": True}, "resources": {"limits": {"cpu": "1"}}}
    volumes = [{"name": "v", "emptyDir": {"sizeLimit": "1Gi", "medium": "Memory"}}]

    found = check_pod(pod(container, securityContext={"fsGroup": 1}, volumes=volumes))

    assert found.refused == ()
    assert set(found.unenforced) == {
        "spec.securityContext",
        "spec.containers[0].image",
        "spec.containers[0].securityContext",
        "spec.containers[0].resources.limits",
        "spec.volumes[0].emptyDir.sizeLimit",
        "spec.volumes[0].emptyDir.medium",
    }


def test_a_mount_may_lie_inside_an_empty_directory_only() -> None:
    mounts = [{"name": "outer", "mountPath": "/tmp"}, {"name": "inner", "mountPath": "/tmp/in"}]
    inner = {"name": "inner", "secret": {"secretName": "s"}}

    assert check_pod(pod({"volumeMounts": mounts}, volumes=[{"name": "outer", "emptyDir": {}}, inner])).refused == ()
    (refusal,) = check_pod(
        pod({"volumeMounts": mounts}, volumes=[{"name": "outer", "hostPath": {"path": "/x"}}, inner])
    ).refused
    assert refusal == (
        "spec.containers[0].volumeMounts[1].mountPath: '/tmp/in' lies inside the mount '/tmp', which is no emptyDir; "
        "not supported by this node"
    )


def test_a_field_that_is_off_asks_for_nothing() -> None:
    assert check_pod(pod({"tty": False, "stdin": False}, hostNetwork=False, hostAliases=[])).refused == ()


def unenforced_paths(rule: Rule, path: str = "") -> Iterator[str]:
    if isinstance(rule, Unenforced):
        yield path
    elif isinstance(rule, Each):
        yield from unenforced_paths(rule.rule, path)
    elif isinstance(rule, Fields):
        for name, inner in rule.fields.items():
            yield from unenforced_paths(inner, f"{path}.{name}")


def test_the_documentation_lists_what_is_not_enforced() -> None:
    text = (Path(__file__).parents[2] / "docs" / "process-node.md").read_text()
    listed = text.partition("## Accepted, not enforced")[2].partition("## ")[0]

    paths = set(unenforced_paths(POD_SPEC))
    assert len(paths) > 5
    for path in paths:
        parts = path.split(".")
        assert any(f"`{'.'.join(parts[start:])}`" in listed for start in range(len(parts))), path
