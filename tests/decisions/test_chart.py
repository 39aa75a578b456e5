"""The chart, rendered without a cluster: what it makes, what it allows, what it refuses."""

from __future__ import annotations

import importlib.metadata
from pathlib import Path
from typing import Any

import helm_python
import pytest
import yaml
from graft_local import helm
from graft_local.errors import LocalClusterError
from graft_operator import objects
from graft_operator.kinds import EVENT, KINDS, SECRET, watched_kinds
from graft_operator.resource import parse_spec
from graft_operator.settings import Settings, parse_settings

CHART = Path(__file__).parents[2] / "charts/graft"
WRITTEN = {"get", "list", "watch", "create", "patch", "delete"}
READ = {"get", "list", "watch"}


def rendered(**values: Any) -> list[dict[str, Any]]:
    files = helm.template(CHART, name="graft", namespace="graft-system", values=values)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    return [document for text in texts for document in yaml.safe_load_all(text) if document]


def only(documents: list[dict[str, Any]], kind: str, name: str | None = None) -> dict[str, Any]:
    (found,) = [
        document for document in documents if document["kind"] == kind and name in {None, document["metadata"]["name"]}
    ]
    return found


def operator_pod(**values: Any) -> dict[str, Any]:
    template: dict[str, Any] = only(rendered(**values), "Deployment")["spec"]["template"]
    return template


def settings_of(**values: Any) -> Settings:
    """The settings that the operator would read from the command line that the chart writes."""
    (container,) = operator_pod(**values)["spec"]["containers"]
    assert container["command"] == ["graft-operator"]
    subcommand, *arguments = container["args"]
    assert subcommand == "run"
    fields = {"$(POD_NAMESPACE)": "graft-system", "$(POD_IP)": "10.0.0.7"}
    assert {entry["name"] for entry in container["env"]} == {"POD_NAMESPACE", "POD_IP"}
    return parse_settings([fields.get(argument, argument) for argument in arguments])


def test_the_chart_has_no_fault() -> None:
    messages = helm_python.lint(CHART)["messages"]
    assert [message["error"] for message in messages] == ["icon is recommended"]


@pytest.mark.parametrize("distribution", ["graft-runtime", "graft-operator", "graft-local", "graft-process-node"])
def test_chart_and_distributions_are_of_one_version(distribution: str) -> None:
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["version"] == chart["appVersion"] == importlib.metadata.version(distribution)


def test_the_operator_reads_what_the_chart_writes() -> None:
    assert settings_of() == Settings(
        namespace="graft-system",
        runtime_image="graft-runtime:0.1.0",
        runtime_image_pull_policy="IfNotPresent",
        bind_address="all",
        health_address="0.0.0.0",
        health_port=8080,
        watch_namespaces=(),
        allowed_schemes=("hf", "pvc"),
        signing_key_secret="graft-operator-signing-key",
        log_level="info",
    )


def test_every_value_reaches_the_operator() -> None:
    settings = settings_of(
        runtimeImage={"repository": "registry.example/runtime", "tag": "1.2", "pullPolicy": "Always"},
        watchNamespaces=["team-a", "team-b"],
        allowedSchemes=["pvc", "file"],
        allowedNetworks=["10.0.0.0/8", "fd00::/8"],
        bindAddress="podIP",
        logging={"level": "debug"},
    )
    assert settings.runtime_image == "registry.example/runtime:1.2"
    assert settings.runtime_image_pull_policy == "Always"
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.allowed_schemes == ("pvc", "file")
    assert settings.allowed_networks == ("10.0.0.0/8", "fd00::/8")
    assert settings.bind_address == "podIP"
    assert settings.health_address == "10.0.0.7"
    assert settings.log_level == "debug"


def test_the_network_policies_of_pools_find_the_operator() -> None:
    spec = parse_spec({"baseModel": {"uri": "pvc://m/gemma"}, "sources": [{"name": "m", "claimName": "m"}]})
    policy = objects.build_network_policy(objects.Pool("team-a", "support", "1", 1, spec), settings_of())
    (peer,) = policy["spec"]["ingress"][1]["from"]
    wanted = peer["podSelector"]["matchLabels"]
    assert wanted.items() <= operator_pod()["metadata"]["labels"].items()


def test_the_operator_meets_the_restricted_pod_security_standard() -> None:
    spec = operator_pod()["spec"]
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    (container,) = spec["containers"]
    assert container["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
        "readOnlyRootFilesystem": True,
    }


def verbs_of(rules: list[dict[str, Any]]) -> dict[str, set[str]]:
    return {
        f"{resource}.{group}".rstrip("."): set(rule["verbs"])
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
    }


OPERATOR_VERBS = {
    "adapterdeployments.graft.dev": READ,
    "adapterdeployments/status.graft.dev": {"get", "patch"},
    "adapterdeployments/finalizers.graft.dev": {"update"},
    "deployments.apps": WRITTEN,
    "services": WRITTEN,
    "configmaps": WRITTEN,
    "poddisruptionbudgets.policy": WRITTEN,
    "networkpolicies.networking.k8s.io": WRITTEN,
    "pods": READ,
    "events": {"create"},
}


def test_the_operator_has_rights_on_all_that_it_touches() -> None:
    touched = {f"{kind.plural}.{kind.group}".rstrip(".") for kind in KINDS.values() if kind is not SECRET}
    assert touched == {name for name in OPERATOR_VERBS if "/" not in name}


def test_the_operator_may_list_and_watch_what_it_watches() -> None:
    granted = verbs_of(only(rendered(), "ClusterRole")["rules"])
    watched = {f"{kind.plural}.{kind.group}".rstrip(".") for kind in watched_kinds()}
    assert {name for name in watched if granted[name] >= {"list", "watch"}} == watched
    assert granted[EVENT.plural] == {"create"}


def test_without_a_list_of_namespaces_the_operator_serves_the_cluster() -> None:
    documents = rendered()
    role, binding = only(documents, "ClusterRole"), only(documents, "ClusterRoleBinding")
    assert verbs_of(role["rules"]) == OPERATOR_VERBS
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = only(documents, "ServiceAccount")["metadata"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert operator_pod()["spec"]["serviceAccountName"] == account["name"]


def test_with_a_list_of_namespaces_it_has_rights_there_alone() -> None:
    documents = rendered(watchNamespaces=["team-a", "team-b"])
    assert not [document for document in documents if document["kind"].startswith("ClusterRole")]
    roles = [document for document in documents if document["kind"] == "Role"]
    rights = {role["metadata"]["namespace"]: verbs_of(role["rules"]) for role in roles}
    assert rights.pop("graft-system") == {"secrets": {"get", "patch"}}
    assert rights == {"team-a": OPERATOR_VERBS, "team-b": OPERATOR_VERBS}


@pytest.mark.parametrize("namespaces", [[], ["team-a"]], ids=["cluster", "namespaces"])
def test_the_signing_key_is_the_only_secret_it_may_read(namespaces: list[str]) -> None:
    documents = rendered(watchNamespaces=namespaces)
    roles = [document for document in documents if document["kind"] in {"Role", "ClusterRole"}]
    rules = [rule for role in roles for rule in role["rules"] if "secrets" in rule["resources"]]
    assert rules == [
        {"apiGroups": [""], "resources": ["secrets"], "verbs": ["create"]},
        {
            "apiGroups": [""],
            "resources": ["secrets"],
            "resourceNames": [settings_of().signing_key_secret],
            "verbs": ["get", "patch"],
        },
    ]


def test_the_crd_comes_with_the_chart_unless_told_otherwise() -> None:
    crd = only(rendered(), "CustomResourceDefinition")
    assert crd["metadata"]["annotations"]["helm.sh/resource-policy"] == "keep"
    kinds = {document["kind"] for document in rendered(crds={"enabled": False})}
    assert "CustomResourceDefinition" not in kinds


def test_names_follow_the_release() -> None:
    files = helm.template(CHART, name="serving", namespace="ml")
    deployment = yaml.safe_load(files["graft/templates/deployment.yaml"])
    assert deployment["metadata"]["name"] == "serving-graft-operator"
    assert deployment["spec"]["strategy"] == {"type": "Recreate"}


def test_placement_reaches_the_pod() -> None:
    template = operator_pod(
        nodeSelector={"zone": "a"},
        tolerations=[{"key": "infra", "operator": "Exists"}],
        affinity={"nodeAffinity": {}},
        priorityClassName="system-cluster-critical",
        podAnnotations={"note": "x"},
        imagePullSecrets=[{"name": "registry"}],
        resources={"limits": {"memory": "1Gi"}},
    )
    spec = template["spec"]
    assert template["metadata"]["annotations"] == {"note": "x"}
    assert spec["nodeSelector"] == {"zone": "a"}
    assert spec["tolerations"] == [{"key": "infra", "operator": "Exists"}]
    assert spec["affinity"] == {"nodeAffinity": {}}
    assert spec["priorityClassName"] == "system-cluster-critical"
    assert spec["imagePullSecrets"] == [{"name": "registry"}]
    assert spec["containers"][0]["resources"]["limits"]["memory"] == "1Gi"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"bindAddress": "some"}, "bindAddress"),
        ({"allowedSchemes": ["s3"]}, "allowedSchemes"),
        ({"allowedSchemes": []}, "allowedSchemes"),
        ({"allowedNetworks": ["inside"]}, "allowedNetworks"),
        ({"watchNamespace": "team-a"}, "watchNamespace"),
        ({"watchNamespaces": ["Team A"]}, "watchNamespaces"),
        ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
        ({"logging": {"level": "loud"}}, "level"),
        ({"image": {"repository": ""}}, "repository"),
        ({"crds": {"enabled": "yes"}}, "enabled"),
    ],
    ids=str,
)
def test_a_value_without_meaning_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(LocalClusterError, match=told):
        rendered(**values)
