"""The chart, rendered without a cluster: what it makes, what it allows, what it refuses."""

from __future__ import annotations

import importlib.metadata
from typing import Any

import helm_python
import pytest
import yaml
from graft_local import helm
from graft_local.errors import LocalClusterError
from graft_operator import objects
from graft_operator.kinds import DEPLOYMENT_LABEL
from graft_operator.resource import parse_spec
from graft_operator.settings import PodDefaults, Settings
from graft_runtime.contract.ports import CONTROL_PORT

from tests.support.chart import CHART, only, operator_pod, rendered, settings_of

SPREAD = {
    "topologyKey": "kubernetes.io/hostname",
    "maxSkew": 1,
    "whenUnsatisfiable": "ScheduleAnyway",
    "labelSelector": {"matchLabels": {"app.kubernetes.io/managed-by": "graft"}},
    "matchLabelKeys": [DEPLOYMENT_LABEL],
}


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
        page=False,
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
    assert not settings.page
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


def test_one_operator_stands_by_for_the_other_on_another_node() -> None:
    deployment = only(rendered(), "Deployment")["spec"]
    assert deployment["replicas"] == 2
    (spread,) = deployment["template"]["spec"]["topologySpreadConstraints"]
    assert spread["topologyKey"] == "kubernetes.io/hostname"
    chosen = spread["labelSelector"]["matchLabels"]
    assert chosen.items() <= deployment["template"]["metadata"]["labels"].items()


def test_the_crd_comes_with_the_chart_unless_told_otherwise() -> None:
    for name in ("adapterdeployments.graft.dev", "adapters.graft.dev"):
        crd = only(rendered(), "CustomResourceDefinition", name)
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
