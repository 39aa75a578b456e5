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
from graft_operator.kinds import CLAIM, DEPLOYMENT_LABEL, EVENT, KINDS, LEASE, SECRET, Kind, watched_kinds
from graft_operator.resource import parse_spec
from graft_operator.settings import PodDefaults, Settings, parse_settings
from graft_runtime.contract.ports import CONTROL_PORT

CHART = Path(__file__).parents[2] / "charts/graft"
WRITTEN = {"get", "list", "watch", "create", "patch", "delete"}
READ = {"get", "list", "watch"}
SPREAD = {
    "topologyKey": "kubernetes.io/hostname",
    "maxSkew": 1,
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "graft"}},
    "matchLabelKeys": [DEPLOYMENT_LABEL],
}


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
    fields = {"$(POD_NAMESPACE)": "graft-system", "$(POD_IP)": "10.0.0.7", "$(POD_NAME)": "graft-operator-x"}
    assert {entry["name"] for entry in container["env"]} == {"POD_NAMESPACE", "POD_NAME", "POD_IP"}
    return parse_settings([fields.get(argument, argument.replace("$$(", "$(")) for argument in arguments])


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
        pod_defaults=PodDefaults(
            spec={
                "securityContext": {"fsGroup": 65532, "runAsUser": 65532, "runAsGroup": 65532},
                "containers": [
                    {
                        "name": "runtime",
                        "resources": {"requests": {"cpu": "250m", "memory": "1Gi"}, "limits": {"memory": "14Gi"}},
                    }
                ],
                "topologySpreadConstraints": [SPREAD],
            }
        ),
        accelerator_resource="nvidia.com/gpu",
        bind_address="all",
        health_address="0.0.0.0",
        health_port=8080,
        watch_namespaces=(),
        allowed_schemes=("hf", "pvc"),
        signing_key_secret="graft-operator-signing-key",
        lease="graft-operator",
        lease_seconds=15,
        identity="graft-operator-x",
        log_level="info",
    )


def test_every_value_reaches_the_operator() -> None:
    settings = settings_of(
        runtimeImage={"repository": "registry.example/runtime", "tag": "1.2", "pullPolicy": "Always"},
        podDefaults={
            "metadata": {"labels": {"team": "a"}, "annotations": {"note": 'a "$(NAME)"'}},
            "spec": {
                "securityContext": {"fsGroup": None, "runAsUser": None, "runAsGroup": None},
                "containers": None,
                "topologySpreadConstraints": None,
            },
        },
        acceleratorResource="amd.com/gpu",
        cacheSize="30Gi",
        adapterSize="200Mi",
        watchNamespaces=["team-a", "team-b"],
        allowedSchemes=["pvc", "file"],
        allowedNetworks=["10.0.0.0/8", "fd00::/8"],
        apiPeers=[{"podSelector": {"matchLabels": {"app": "gateway"}}}],
        allowedEndpoints=["huggingface.co", "*.hf.co"],
        allowedClaims={"matchLabels": {"graft.dev/usable": "true"}},
        allowedSecrets={"matchLabels": {"team": "a"}},
        allowedPodTemplateFields=["hostAliases", "containers.env"],
        bindAddress="podIP",
        logging={"level": "debug"},
        leaseSeconds=30,
    )
    assert settings.lease_seconds == 30
    assert settings.runtime_image == "registry.example/runtime:1.2"
    assert settings.runtime_image_pull_policy == "Always"
    defaults = PodDefaults({"team": "a"}, {"note": 'a "$(NAME)"'}, {"securityContext": {}})
    assert settings.pod_defaults == defaults, "null takes a value away, and nothing is expanded"
    assert settings.accelerator_resource == "amd.com/gpu"
    assert (settings.cache_size, settings.adapter_size) == ("30Gi", "200Mi")
    assert settings.watch_namespaces == ("team-a", "team-b")
    assert settings.allowed_schemes == ("pvc", "file")
    assert settings.allowed_networks == ("10.0.0.0/8", "fd00::/8")
    assert settings.api_peers == ({"podSelector": {"matchLabels": {"app": "gateway"}}},)
    assert settings.allowed_endpoints == ("huggingface.co", "*.hf.co")
    assert (settings.allowed_claims, settings.allowed_secrets) == ({"graft.dev/usable": "true"}, {"team": "a"})
    assert settings.allowed_pod_template_fields == ("hostAliases", "containers.env")
    assert settings.bind_address == "podIP"
    assert settings.health_address == "10.0.0.7"
    assert settings.log_level == "debug"


def test_the_network_policies_of_pools_find_the_operator() -> None:
    spec = parse_spec({"baseModel": {"uri": "pvc://m/gemma"}, "sources": [{"name": "m", "claimName": "m"}]})
    policy = objects.build_network_policy(objects.Pool("team-a", "support", "1", 1, spec), settings_of())
    operator, _pods = policy["spec"]["ingress"][1]["from"]
    wanted = operator["podSelector"]["matchLabels"]
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


OPERATOR_ROLE = "graft-system-graft-operator"
OPERATOR_VERBS = {
    "adapterdeployments.graft.dev": READ,
    "adapterdeployments/status.graft.dev": {"get", "patch"},
    "adapterdeployments/finalizers.graft.dev": {"update"},
    "deployments.apps": WRITTEN,
    "replicasets.apps": READ,
    "services": WRITTEN,
    "configmaps": WRITTEN,
    "poddisruptionbudgets.policy": WRITTEN,
    "networkpolicies.networking.k8s.io": WRITTEN,
    "pods": READ,
    "events": {"create"},
}


def test_the_operator_has_rights_on_all_that_it_touches() -> None:
    others = {SECRET, CLAIM, LEASE}
    touched = {f"{kind.plural}.{kind.group}".rstrip(".") for kind in KINDS.values() if kind not in others}
    assert touched == {name for name in OPERATOR_VERBS if "/" not in name}


@pytest.mark.parametrize("kind", [SECRET, CLAIM], ids=lambda kind: str(kind.name))
def test_it_may_read_what_pools_name_where_the_administrator_chooses_by_labels(kind: Kind) -> None:
    value = "allowedSecrets" if kind is SECRET else "allowedClaims"
    labels = {"matchLabels": {"graft.dev/usable": "true"}}
    granted = verbs_of(only(rendered(**{value: labels}), "ClusterRole", OPERATOR_ROLE)["rules"])
    assert granted == {**OPERATOR_VERBS, kind.plural: {"get"}}


def test_the_operator_may_list_and_watch_what_it_watches() -> None:
    granted = verbs_of(only(rendered(), "ClusterRole", OPERATOR_ROLE)["rules"])
    watched = {f"{kind.plural}.{kind.group}".rstrip(".") for kind in watched_kinds()}
    assert {name for name in watched if granted[name] >= {"list", "watch"}} == watched
    assert granted[EVENT.plural] == {"create"}


def test_without_a_list_of_namespaces_the_operator_serves_the_cluster() -> None:
    documents = rendered()
    role, binding = only(documents, "ClusterRole", OPERATOR_ROLE), only(documents, "ClusterRoleBinding")
    assert verbs_of(role["rules"]) == OPERATOR_VERBS
    assert binding["roleRef"]["name"] == role["metadata"]["name"]
    account = only(documents, "ServiceAccount")["metadata"]
    assert binding["subjects"] == [
        {"kind": "ServiceAccount", "name": account["name"], "namespace": account["namespace"]}
    ]
    assert operator_pod()["spec"]["serviceAccountName"] == account["name"]


def test_with_a_list_of_namespaces_it_has_rights_there_alone() -> None:
    documents = rendered(watchNamespaces=["team-a", "team-b"])
    assert not [document for document in documents if document["kind"] == "ClusterRoleBinding"]
    of_the_cluster = {document["metadata"]["name"] for document in documents if document["kind"] == "ClusterRole"}
    assert of_the_cluster == {"graft-view", "graft-edit"}, "for users"
    roles = [document for document in documents if document["kind"] == "Role"]
    rights = {(role["metadata"]["namespace"], role["metadata"]["name"]): verbs_of(role["rules"]) for role in roles}
    assert rights == {
        ("graft-system", "graft-operator-signing-key"): {"secrets": {"get", "patch"}},
        ("graft-system", "graft-operator-lease"): {
            "leases.coordination.k8s.io": {"get", "patch"},
            "events": {"create"},
        },
        ("team-a", "graft-operator"): OPERATOR_VERBS,
        ("team-b", "graft-operator"): OPERATOR_VERBS,
    }


def test_the_operator_may_have_its_own_lease_alone() -> None:
    rules = only(rendered(), "Role", "graft-operator-lease")["rules"]
    create, own = (rule for rule in rules if rule["resources"] == ["leases"])
    assert create["verbs"] == ["create"], "can't be bound to a name"
    assert own["resourceNames"] == [settings_of().lease]
    assert set(own["verbs"]) == {"get", "patch"}


def test_one_operator_stands_by_for_the_other_on_another_node() -> None:
    deployment = only(rendered(), "Deployment")["spec"]
    assert deployment["replicas"] == 2
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    chosen = spread["labelSelector"]["matchLabels"]
    assert chosen.items() <= deployment["template"]["metadata"]["labels"].items()


def test_users_get_their_rights_with_kubernetes_own_roles() -> None:
    documents = rendered()
    view, edit = (only(documents, "ClusterRole", f"graft-{name}") for name in ("view", "edit"))
    assert verbs_of(view["rules"]) == {
        "adapterdeployments.graft.dev": READ,
        "adapterdeployments/status.graft.dev": READ,
    }
    assert verbs_of(edit["rules"]) == {
        "adapterdeployments.graft.dev": {"create", "update", "patch", "delete", "deletecollection"},
        "adapterdeployments/scale.graft.dev": {"get", "update", "patch"},
    }
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    added = [{key.removeprefix(prefix) for key in role["metadata"]["labels"] if prefix in key} for role in (view, edit)]
    assert added == [{"view", "edit", "admin"}, {"edit", "admin"}]


def test_without_rights_on_the_cluster_the_rest_is_installed_and_no_field_is_allowed() -> None:
    without = {"clusterAccess": {"enabled": False}, "crds": {"enabled": False}, "watchNamespaces": ["team-a"]}
    kinds = {document["kind"] for document in rendered(**without)}
    assert not [kind for kind in kinds if kind.startswith(("Cluster", "ValidatingAdmission", "CustomResource"))]
    with pytest.raises(LocalClusterError, match="allowedPodTemplateFields needs the admission policy"):
        rendered(**without, allowedPodTemplateFields=["hostAliases"])


def test_the_admission_policy_is_in_force_where_pools_are_served() -> None:
    for values in ({}, {"watchNamespaces": ["team-a", "team-b"]}):
        documents = rendered(**values)
        policy, binding = (only(documents, f"ValidatingAdmissionPolicy{kind}") for kind in ("", "Binding"))
        assert binding["spec"]["policyName"] == policy["metadata"]["name"]
        assert policy["spec"]["failurePolicy"] == "Fail"
        assert binding["spec"]["validationActions"] == ["Deny"]
        (chosen,) = binding["spec"].get("matchResources", {}).get("namespaceSelector", {}).get("matchExpressions", [{}])
        assert chosen.get("values") == values.get("watchNamespaces")


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
    arguments = deployment["spec"]["template"]["spec"]["containers"][0]["args"]
    assert arguments[arguments.index("--lease") + 1] == "serving-graft-operator"


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


def test_a_digest_takes_the_place_of_a_tag() -> None:
    digest = "sha256:" + "0" * 64
    image = {"repository": "registry.example/x", "tag": "1.2", "digest": digest}
    spec = operator_pod(image=image, runtimeImage=image)["spec"]
    assert spec["containers"][0]["image"] == f"registry.example/x@{digest}"
    assert settings_of(image=image, runtimeImage=image).runtime_image == f"registry.example/x@{digest}"


def test_variables_reach_the_operator_beside_its_own() -> None:
    (container,) = operator_pod(extraEnv=[{"name": "HTTPS_PROXY", "value": "http://proxy:3128"}])["spec"]["containers"]
    assert [entry["name"] for entry in container["env"]] == ["POD_NAMESPACE", "POD_NAME", "POD_IP", "HTTPS_PROXY"]


def test_a_drain_may_take_the_operator() -> None:
    documents = rendered()
    budget = only(documents, "PodDisruptionBudget")["spec"]
    assert budget["maxUnavailable"] == 1
    labels = only(documents, "Deployment")["spec"]["template"]["metadata"]["labels"]
    assert budget["selector"]["matchLabels"].items() <= labels.items()


def test_the_operator_s_own_network_policy_opens_what_it_needs() -> None:
    assert not [document for document in rendered() if document["kind"] == "NetworkPolicy"]
    policy = only(rendered(networkPolicy={"enabled": True, "apiServerPorts": [6443]}), "NetworkPolicy")["spec"]
    assert policy["ingress"] == [{"ports": [{"port": "health", "protocol": "TCP"}]}]
    dns, api_server, pools = policy["egress"]
    assert {port["port"] for port in dns["ports"]} == {53}
    assert api_server == {"ports": [{"port": 6443, "protocol": "TCP"}]}
    assert pools["ports"] == [{"port": CONTROL_PORT, "protocol": "TCP"}]
    assert [each["key"] for each in pools["to"][0]["podSelector"]["matchExpressions"]] == [DEPLOYMENT_LABEL]


def test_the_test_of_a_release_asks_the_service_as_restricted_as_the_rest() -> None:
    documents = rendered()
    pod, service = only(documents, "Pod"), only(documents, "Service")
    assert pod["metadata"]["annotations"]["helm.sh/hook"] == "test"
    (container,) = pod["spec"]["containers"]
    host = f"{service['metadata']['name']}.{service['metadata']['namespace']}.svc:{service['spec']['ports'][0]['port']}"
    assert f"http://{host}/readyz" in container["command"][-1]
    compile(container["command"][-1], "test", "exec")
    operator = operator_pod()["spec"]
    assert container["securityContext"] == operator["containers"][0]["securityContext"]
    assert pod["spec"]["securityContext"] == operator["securityContext"]
    labels = pod["metadata"]["labels"]
    assert not service["spec"]["selector"].items() <= labels.items(), "nothing leads to it"


@pytest.mark.parametrize(
    ("values", "told"),
    [
        ({"monitoring": {"rule": {}}}, "rule"),
        ({"monitoring": {"rules": {"adapterStuckAfter": "soon"}}}, "adapterStuckAfter"),
        ({"monitoring": {"podMonitor": {"interval": 30}}}, "interval"),
        ({"networkPolicy": {"apiServerPorts": []}}, "apiServerPorts"),
        ({"image": {"repository": "x", "digest": "abc"}}, "digest"),
        ({"extraEnv": [{"value": "x"}]}, "name"),
        ({"bindAddress": "some"}, "bindAddress"),
        ({"replicas": 0}, "replicas"),
        ({"leaseSeconds": 1}, "leaseSeconds"),
        ({"allowedSchemes": ["s3"]}, "allowedSchemes"),
        ({"allowedSchemes": []}, "allowedSchemes"),
        ({"allowedNetworks": ["inside"]}, "allowedNetworks"),
        ({"watchNamespace": "team-a"}, "watchNamespace"),
        ({"watchNamespaces": ["Team A"]}, "watchNamespaces"),
        ({"watchNamespaces": ["a", "a"]}, "watchNamespaces"),
        ({"logging": {"level": "loud"}}, "level"),
        ({"image": {"repository": ""}}, "repository"),
        ({"crds": {"enabled": "yes"}}, "enabled"),
        ({"podDefaults": {"containers": []}}, "containers"),
        ({"podDefaults": {"metadata": {"name": "x"}}}, "name"),
        ({"acceleratorResource": "gpu"}, "acceleratorResource"),
        ({"allowedPodTemplateFields": ["spec.*"]}, "allowedPodTemplateFields"),
        ({"cacheSize": "much"}, "cacheSize"),
        ({"adapterSize": 5}, "adapterSize"),
        ({"allowedEndpoints": ["https://hub.example"]}, "allowedEndpoints"),
        ({"apiPeers": [{"namespace": "gateway"}]}, "apiPeers"),
        ({"clusterAccess": {"roles": True}}, "roles"),
        ({"allowedSecrets": {"labels": {}}}, "labels"),
    ],
    ids=str,
)
def test_a_value_without_meaning_is_refused(values: dict[str, Any], told: str) -> None:
    with pytest.raises(LocalClusterError, match=told):
        rendered(**values)
