"""From a container's spec to arguments and environment."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import pytest
from graft_process_node.downward import PodFacts
from graft_process_node.expansion import expand
from graft_process_node.mounts import Mounts
from graft_process_node.process_spec import (
    ContainerConfigError,
    ProcessSpec,
    Surroundings,
    build_process,
    references,
)
from graft_process_node.quantity import in_units, parse_quantity

POD: dict[str, Any] = {
    "metadata": {
        "name": "web",
        "namespace": "shop",
        "uid": "u-1",
        "labels": {"app": "web", "tier": 'a"b'},
        "annotations": {"note": "x"},
    },
    "spec": {
        "serviceAccountName": "seller",
        "containers": [{"name": "main", "resources": {"limits": {"memory": "1Gi", "cpu": "1500m"}}}],
    },
}
OBJECTS: dict[tuple[str, str], dict[str, Any]] = {
    ("configmaps", "settings"): {
        "data": {"colour": "green"},
        "binaryData": {"raw": base64.b64encode(b"bytes").decode()},
    },
    ("secrets", "keys"): {"data": {"pin": base64.b64encode(b"1234").decode()}},
}
VOLUME = Path("/state/pods/u-1/volumes/data")


def build(**container: Any) -> ProcessSpec:
    return build_process(
        {"name": "main", **container},
        Surroundings(
            facts=PodFacts(POD, "127.1.0.5", "127.0.0.1", "local", {"memory": "8Gi", "cpu": "20"}),
            volumes={"data": VOLUME, "api": Path("/state/api")},
            objects=OBJECTS,
            image_environment={"PATH": "/venv/bin:/bin"},
            home=Path("/state/home"),
            termination_log=Path("/state/termination-log"),
            kubeconfig=Path("/state/kubeconfig"),
        ),
    )


def value(**variable: Any) -> str | None:
    return build(env=[{"name": "X", **variable}], command=["x"]).environment.get("X")


@pytest.mark.parametrize(
    ("text", "expanded"),
    [
        ("$(A)", "1"),
        ("a$(A)b$(B)", "a1b2"),
        ("$(NOPE)", "$(NOPE)"),
        ("$$(A)", "$(A)"),
        ("$$$(A)", "$1"),
        ("$A ${A} $", "$A ${A} $"),
        ("$(A", "$(A"),
    ],
)
def test_references_are_expanded_by_kubernetes_rules(text: str, expanded: str) -> None:
    assert expand(text, {"A": "1", "B": "2"}) == expanded


def test_variables_see_those_before_them_and_arguments_see_all() -> None:
    made = build(
        env=[{"name": "A", "value": "1"}, {"name": "B", "value": "$(A)$(C)"}, {"name": "C", "value": "3"}],
        command=["run", "$(B)"],
        args=["$(C)"],
    )

    assert made.arguments == ("run", "1$(C)", "3")


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("metadata.name", "web"),
        ("metadata.namespace", "shop"),
        ("metadata.uid", "u-1"),
        ("metadata.labels['app']", "web"),
        ("metadata.annotations['note']", "x"),
        ("metadata.labels['none']", ""),
        ("spec.nodeName", "local"),
        ("spec.serviceAccountName", "seller"),
        ("status.podIP", "127.1.0.5"),
        ("status.hostIP", "127.0.0.1"),
    ],
)
def test_fields_of_the_pod_reach_the_environment(path: str, expected: str) -> None:
    assert value(valueFrom={"fieldRef": {"fieldPath": path}}) == expected


@pytest.mark.parametrize(
    ("reference", "expected"),
    [
        ({"resource": "limits.memory"}, str(2**30)),
        ({"resource": "limits.memory", "divisor": "1Mi"}, "1024"),
        ({"resource": "limits.cpu"}, "2"),
        ({"resource": "limits.cpu", "divisor": "1m"}, "1500"),
        ({"resource": "requests.cpu"}, "0"),
    ],
)
def test_resources_reach_the_environment(reference: dict[str, str], expected: str) -> None:
    found = build_process(
        {"name": "main", "command": ["x"], "env": [{"name": "X", "valueFrom": {"resourceFieldRef": reference}}]},
        Surroundings(PodFacts(POD, "127.1.0.5", "127.0.0.1", "local"), {}, {}, {}, Path("/h"), Path("/t")),
    )

    assert found.environment["X"] == expected


def test_a_limit_that_is_not_set_is_what_the_node_has() -> None:
    pod = {**POD, "spec": {"containers": [{"name": "main"}]}}
    container = {
        "name": "main",
        "command": ["x"],
        "env": [{"name": "X", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory"}}}],
    }
    facts = PodFacts(pod, "127.1.0.5", "127.0.0.1", "local", {"memory": "8Gi"})

    made = build_process(container, Surroundings(facts, {}, {}, {}, Path("/h"), Path("/t")))

    assert made.environment["X"] == str(8 * 2**30)


def test_config_maps_and_secrets_reach_the_environment() -> None:
    made = build(
        command=["x"],
        envFrom=[{"prefix": "S_", "configMapRef": {"name": "settings"}}, {"secretRef": {"name": "keys"}}],
        env=[
            {"name": "COLOUR", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "colour"}}},
            {"name": "NONE", "valueFrom": {"configMapKeyRef": {"name": "absent", "key": "x", "optional": True}}},
            {"name": "PIN", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "pin"}}},
        ],
    ).environment

    assert (made["S_colour"], made["S_raw"], made["pin"]) == ("green", "bytes", "1234")
    assert (made["COLOUR"], made["PIN"]) == ("green", "1234")
    assert "NONE" not in made


@pytest.mark.parametrize(
    ("variable", "message"),
    [
        ({"configMapKeyRef": {"name": "absent", "key": "x"}}, "ConfigMap shop/absent not found"),
        ({"secretKeyRef": {"name": "keys", "key": "x"}}, "couldn't find key x in Secret shop/keys"),
        ({"fieldRef": {"fieldPath": "spec.nope"}}, "fieldPath `spec.nope` isn't supported by this node"),
    ],
)
def test_what_is_missing_is_named(variable: dict[str, Any], message: str) -> None:
    with pytest.raises(ContainerConfigError, match=f"^{message}$"):
        value(valueFrom=variable)


def test_what_the_environment_refers_to_is_known_beforehand() -> None:
    container = {
        "envFrom": [{"configMapRef": {"name": "a"}}, {"secretRef": {"name": "b"}}],
        "env": [
            {"name": "X", "valueFrom": {"secretKeyRef": {"name": "c", "key": "k"}}},
            {"name": "Y", "valueFrom": {"configMapKeyRef": {"name": "d", "key": "k"}}},
            {"name": "Z", "value": "1"},
        ],
    }

    assert references(container) == {("configmaps", "a"), ("secrets", "b"), ("secrets", "c"), ("configmaps", "d")}


@pytest.mark.parametrize(
    ("word", "rewritten"),
    [
        ("/data", str(VOLUME)),
        ("/data/", str(VOLUME)),
        ("/data/x/y", f"{VOLUME}/x/y"),
        ("/database", "/database"),
        ("--dir=/data", "--dir=/data"),
        ("file:///data", "file:///data"),
        ("/single", f"{VOLUME}/one/file"),
    ],
)
def test_a_path_at_or_below_a_mount_is_rewritten(word: str, rewritten: str) -> None:
    made = build(
        command=["run", word],
        env=[{"name": "X", "value": word}],
        workingDir="/data/work",
        volumeMounts=[
            {"name": "data", "mountPath": "/data"},
            {"name": "data", "mountPath": "/single", "subPath": "one/file"},
        ],
    )

    assert made.arguments[1] == rewritten
    assert made.environment["X"] == rewritten
    assert made.directory == f"{VOLUME}/work"


def test_an_argument_that_names_a_variable_gets_its_rewritten_value() -> None:
    mount = [{"name": "data", "mountPath": "/data"}]

    made = build(command=["run", "--dir=$(DIR)"], env=[{"name": "DIR", "value": "/data"}], volumeMounts=mount)

    assert made.arguments == ("run", f"--dir={VOLUME}")


def test_a_sub_path_may_name_variables_and_may_not_leave_the_volume() -> None:
    env = [{"name": "POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}}]
    mount = {"name": "data", "mountPath": "/data", "subPathExpr": "of-$(POD)"}

    assert build(command=["run", "/data"], env=env, volumeMounts=[mount]).arguments[1] == f"{VOLUME}/of-web"
    with pytest.raises(ContainerConfigError, match="leaves the volume"):
        build(command=["run"], volumeMounts=[{"name": "data", "mountPath": "/data", "subPath": "../other"}])
    with pytest.raises(ContainerConfigError, match="the pod has no volume `gone`"):
        build(command=["run"], volumeMounts=[{"name": "gone", "mountPath": "/data"}])


def test_a_container_with_a_token_gets_a_kubeconfig() -> None:
    mount = {"name": "api", "mountPath": "/var/run/secrets/kubernetes.io/serviceaccount"}

    assert build(command=["x"], volumeMounts=[mount]).environment["KUBECONFIG"] == "/state/kubeconfig"
    assert "KUBECONFIG" not in build(command=["x"]).environment
    own = [{"name": "KUBECONFIG", "value": "/mine"}]
    assert build(command=["x"], volumeMounts=[mount], env=own).environment["KUBECONFIG"] == "/mine"


def test_a_process_finds_the_interpreters_programs_a_home_and_its_own_temporary_directory() -> None:
    made = build(command=["x"], volumeMounts=[{"name": "data", "mountPath": "/tmp"}])

    assert made.environment["PATH"] == "/venv/bin:/bin"
    assert made.environment["HOME"] == made.directory == "/state/home"
    assert made.environment["HOSTNAME"] == "web"
    assert made.environment["TMPDIR"] == str(VOLUME)


def test_the_termination_log_is_a_file_of_the_container() -> None:
    assert build(command=["x", "/dev/termination-log"]).arguments[1] == "/state/termination-log"
    assert build(command=["x", "/why"], terminationMessagePath="/why").arguments[1] == "/state/termination-log"


def test_a_mount_inside_another_one_is_a_link() -> None:
    mounts = [
        {"name": "data", "mountPath": "/tmp"},
        {"name": "api", "mountPath": "/tmp/deep/api/"},
        {"name": "api", "mountPath": "/tmp/deep/api/one", "subPath": "x"},
    ]

    made = build(command=["run", "/tmp/deep/api/one", "/tmp/deep/api", "/tmp/deep"], volumeMounts=mounts)

    assert made.arguments == ("run", "/state/api/x", "/state/api", f"{VOLUME}/deep")
    assert made.mounts.links == {
        VOLUME / "deep" / "api": Path("/state/api"),
        Path("/state/api/one"): Path("/state/api/x"),
    }


def test_a_mount_path_matches_whole_parts_only() -> None:
    assert Mounts({"/a": "/x", "/a-b": "/y"}).rewrite("/a-b/c") == "/y/c"


@pytest.mark.parametrize(
    ("text", "number"), [("1", 1), ("500m", 0.5), ("2Gi", 2 * 2**30), ("1k", 1000), ("1e3", 1000), ("0.5", 0.5)]
)
def test_quantities(text: str, number: float) -> None:
    assert parse_quantity(text) == number


@pytest.mark.parametrize("power", range(1, 7))
def test_every_suffix_of_a_large_quantity(power: int) -> None:
    assert parse_quantity(f"7{'kMGTPE'[power - 1]}") == 7 * 1000**power
    assert parse_quantity(f"7{'KMGTPE'[power - 1]}i") == 7 * 1024**power


@pytest.mark.parametrize("text", ["", "x", "1i", "1 Gi", "Gi"])
def test_what_is_no_quantity_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="is not a quantity"):
        parse_quantity(text)


def test_units_are_rounded_up() -> None:
    assert in_units("1001", "1k") == "2"
