"""The chart's life on an API server of its own: rights, and install, upgrade and uninstall in any order."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from graft_local import helm
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.resource.crd import DEFINITIONS

pytestmark = [pytest.mark.cluster, pytest.mark.timeout(180)]

CHART = Path(__file__).parents[2] / "charts/graft"
SYSTEM = "graft-system"
POOL = """\
apiVersion: graft.dev/v1alpha1
kind: AdapterDeployment
metadata:
  name: support
spec:
  baseModel: {uri: pvc://models/gemma}
  sources: [{name: models, claimName: models}]
"""


@pytest.fixture(scope="module")
def control_plane(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LocalCluster]:
    """Not the shared one: these tests bring, and take away, the CustomResourceDefinition."""
    with LocalCluster.start(tmp_path_factory.mktemp("chart"), node=False, services=False) as cluster:
        for name in (SYSTEM, "team-a", "team-b"):
            cluster.kubectl("create", "namespace", name)
        yield cluster


@pytest.fixture
def release(control_plane: LocalCluster) -> Iterator[LocalCluster]:
    install(control_plane)
    yield control_plane
    helm.uninstall(control_plane.kubeconfig, "graft", namespace=SYSTEM)


def install(cluster: LocalCluster, **values: Any) -> None:
    helm.install(cluster.kubeconfig, "graft", CHART, namespace=SYSTEM, values=values, wait=False)
    cluster.kubectl("wait", "--for=condition=Established", "crd/adapterdeployments.graft.dev")


def may(cluster: LocalCluster, verb: str, resource: str, namespace: str, *options: str) -> bool:
    account = f"system:serviceaccount:{SYSTEM}:graft-operator"
    try:
        cluster.kubectl("auth", "can-i", verb, resource, "--namespace", namespace, "--as", account, "--quiet", *options)
    except LocalClusterError:
        return False
    return True


def test_pools_outlive_the_release_and_wedge_nothing(release: LocalCluster) -> None:
    release.kubectl("--namespace", "team-a", "apply", "-f", "-", input=POOL)
    helm.uninstall(release.kubeconfig, "graft", namespace=SYSTEM)
    assert release.kubectl("--namespace", "team-a", "get", "ad", "-o", "name").split() == [
        "adapterdeployment.graft.dev/support"
    ]
    install(release)
    assert (
        release.kubectl("--namespace", "team-a", "get", "ad", "support", "-o", "jsonpath={.metadata.generation}") == "1"
    )
    helm.uninstall(release.kubeconfig, "graft", namespace=SYSTEM)
    release.kubectl("--namespace", "team-a", "delete", "ad", "support", "--timeout=20s")
    release.kubectl("delete", "customresourcedefinition", *DEFINED, "--timeout=20s")


def test_the_definition_may_go_before_the_release(release: LocalCluster) -> None:
    release.kubectl("--namespace", "team-a", "apply", "-f", "-", input=POOL)
    release.kubectl("delete", "customresourcedefinition", *DEFINED, "--timeout=20s")
    helm.uninstall(release.kubeconfig, "graft", namespace=SYSTEM)
    install(release)
    assert release.kubectl("get", "ad", "--all-namespaces", "-o", "name") == ""


DEFINED = tuple(definition.crd_name for definition in DEFINITIONS)


def test_a_second_release_leaves_the_definition_to_the_first(release: LocalCluster) -> None:
    owner = ("get", "crd", "adapterdeployments.graft.dev", "-o", "jsonpath={.metadata.annotations}")
    before = release.kubectl(*owner)
    values = {"watchNamespaces": ["team-b"]}
    helm.install(release.kubeconfig, "other", CHART, namespace="team-b", values=values, wait=False)
    try:
        helm.upgrade(release.kubeconfig, "other", CHART, namespace="team-b", values=values, wait=False)
        helm.upgrade(release.kubeconfig, "graft", CHART, namespace=SYSTEM, values={"watchNamespaces": []}, wait=False)
        assert release.kubectl(*owner) == before
        assert may(release, "patch", "deployments.apps", "team-b")
    finally:
        helm.uninstall(release.kubeconfig, "other", namespace="team-b")
    assert release.kubectl(*owner) == before


def test_a_definition_that_kubectl_applied_stays_as_it_is(release: LocalCluster) -> None:
    release.kubectl("delete", "customresourcedefinition", *DEFINED, "--timeout=20s")
    release.kubectl("create", "-f", str(CHART.parents[1] / "crds"))
    values = {"watchNamespaces": ["team-b"]}
    helm.install(release.kubeconfig, "other", CHART, namespace="team-b", values=values, wait=False)
    helm.uninstall(release.kubeconfig, "other", namespace="team-b")
    release.kubectl("delete", "customresourcedefinition", *DEFINED, "--timeout=20s")


def test_all_that_the_chart_makes_is_taken_where_only_restricted_pods_are(release: LocalCluster) -> None:
    """The API server checks each object; pods it checks for the standard as well, which a Deployment's are not."""
    release.kubectl("label", "namespace", "team-b", "pod-security.kubernetes.io/enforce=restricted")
    values = {"networkPolicy": {"enabled": True}, "monitoring": {"dashboard": {"enabled": True}}}
    files = helm.template(CHART, name="checked", namespace="team-b", values=values)
    texts = [text for path, text in files.items() if path.endswith(".yaml")]
    made = [document for text in texts for document in yaml.safe_load_all(text) if document]
    (deployment,) = [document for document in made if document["kind"] == "Deployment"]
    template = deployment["spec"]["template"]
    metadata = template["metadata"] | {"name": "operator", "namespace": "team-b"}
    pod = template | {"apiVersion": "v1", "kind": "Pod", "metadata": metadata}
    pod["spec"] = pod["spec"] | {"serviceAccountName": "default"}
    for document in (*made, pod):
        if document["kind"] != "CustomResourceDefinition":
            strict = ("apply", "--dry-run=server", "--validate=strict", "-f", "-")
            release.kubectl(*strict, input=yaml.safe_dump(document))
    assert len(made) > 8


def test_an_upgrade_keeps_pools_and_narrows_rights(release: LocalCluster) -> None:
    release.kubectl("--namespace", "team-a", "apply", "-f", "-", input=POOL)
    assert may(release, "patch", "deployments.apps", "team-b")
    values = {"watchNamespaces": ["team-a"]}
    helm.upgrade(release.kubeconfig, "graft", CHART, namespace=SYSTEM, values=values, wait=False)
    assert may(release, "patch", "deployments.apps", "team-a")
    assert not may(release, "patch", "deployments.apps", "team-b")
    assert not may(release, "list", "adapterdeployments.graft.dev", "team-b")
    release.kubectl("--namespace", "team-a", "delete", "ad", "support", "--timeout=20s")


def test_the_operator_may_do_its_work_and_no_more(release: LocalCluster) -> None:
    assert may(release, "patch", "adapterdeployments.graft.dev", "team-a", "--subresource=status")
    assert not may(release, "patch", "adapterdeployments.graft.dev", "team-a")
    assert not may(release, "delete", "pods", "team-a")
    assert not may(release, "create", "pods", "team-a", "--subresource=exec")
    assert may(release, "get", "secrets/graft-operator-signing-key", SYSTEM)
    assert not may(release, "get", "secrets/other", SYSTEM)
    assert not may(release, "list", "secrets", SYSTEM)
    assert not may(release, "get", "secrets/graft-operator-signing-key", "team-a")
