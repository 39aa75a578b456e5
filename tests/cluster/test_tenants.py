"""What users of a namespace may do by writing an AdapterDeployment: the API server is asked as those users."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from graft_local import helm
from graft_local.cluster import LocalCluster
from graft_local.errors import LocalClusterError
from graft_operator.resource.pod_template_fields import FIELDS

from tests.support.definition import install_definition
from tests.support.pod_templates import BEYOND, PLAIN, runtime
from tests.support.waiting import wait_until

pytestmark = pytest.mark.cluster

ROOT = Path(__file__).parents[2]
TEMPLATES = ("graft/templates/admission.yaml", "graft/templates/userroles.yaml")
TUNER, DEVELOPER, READER = "tuner", "developer", "reader"
"""Users: one who may write AdapterDeployments and create no pods, one who edits the namespace, one who views it."""


class Tenancy:
    """A namespace with the chart's admission policy, and its users."""

    def __init__(self, cluster: LocalCluster, namespace: str) -> None:
        self.cluster, self.namespace = cluster, namespace

    def apply(self, user: str, *pools: dict[str, Any], dry_run: bool = True) -> str:
        """Apply pools as a user; return what was refused."""
        text = json.dumps({"apiVersion": "v1", "kind": "List", "items": list(pools)})
        options = ("--dry-run=server",) if dry_run else ()
        try:
            self.cluster.kubectl(
                "--namespace", self.namespace, "--as", user, "apply", "--server-side", *options, "-f", "-", input=text
            )
        except LocalClusterError as error:
            return str(error)
        return ""


def pool(name: str, overlay: dict[str, Any], **spec: Any) -> dict[str, Any]:
    return {
        "apiVersion": "graft.dev/v1alpha1",
        "kind": "AdapterDeployment",
        "metadata": {"name": name},
        "spec": {
            "baseModel": {"uri": "pvc://models/gemma"},
            "sources": [{"name": "models", "claimName": "models"}],
            "podTemplate": {"spec": overlay},
            **spec,
        },
    }


@pytest.fixture
def tenancy(local_cluster: LocalCluster, namespace: str) -> Iterator[Tenancy]:
    install_definition(local_cluster)
    within = ("--namespace", namespace)
    writes = ("--verb=get,create,patch,update", "--resource=adapterdeployments.graft.dev")
    local_cluster.kubectl(*within, "create", "role", "tuner", *writes)
    local_cluster.kubectl(*within, "create", "rolebinding", "tuner", "--role=tuner", f"--user={TUNER}")
    for role, user in {"edit": DEVELOPER, "view": READER}.items():
        local_cluster.kubectl(*within, "create", "rolebinding", role, f"--clusterrole={role}", f"--user={user}")
    values = {"watchNamespaces": [namespace]}
    files = helm.template(ROOT / "charts/graft", name="graft", namespace=namespace, values=values)
    made = "\n---\n".join(files[name] for name in TEMPLATES)
    local_cluster.kubectl("apply", "-f", "-", input=made)
    found = Tenancy(local_cluster, namespace)
    refused = pool("probe", {"hostPID": True})
    wait_until(lambda: found.apply(TUNER, refused) != "", "the policy to be in force")
    wait_until(lambda: found.apply(DEVELOPER, refused) == "", "the roles to be added to Kubernetes' own")
    yield found
    local_cluster.kubectl("delete", "-f", "-", input=made)


def test_only_who_may_create_pods_may_ask_for_more_than_everybody_may(tenancy: Tenancy) -> None:
    plain = [pool(name, overlay) for name, overlay in PLAIN.items()]
    assert tenancy.apply(TUNER, *plain) == ""
    beyond = [pool(name, overlay) for name, (overlay, _) in BEYOND.items()]
    refused = tenancy.apply(TUNER, *beyond)
    for name, (_, field) in BEYOND.items():
        (line,) = [
            line for line in refused.splitlines() if f'adapterdeployments.graft.dev "{name}" is forbidden' in line
        ]
        top = field.partition(".")[0]
        place = f"spec.podTemplate.spec.{top}" if top in FIELDS else "spec.podTemplate.spec"
        assert f"{place} holds what only those may ask for who may create pods" in line
    assert tenancy.apply(DEVELOPER, *plain, *beyond) == ""


def test_a_spec_of_more_is_changed_by_those_alone_who_may_create_pods(tenancy: Tenancy) -> None:
    host = pool("support", {"hostPID": True})
    assert tenancy.apply(DEVELOPER, host, dry_run=False) == ""
    patch = ("--namespace", tenancy.namespace, "--as", TUNER, "patch", "ad", "support", "--type=merge", "-p")
    tenancy.cluster.kubectl(*patch, '{"metadata": {"labels": {"team": "a"}}}')
    with pytest.raises(LocalClusterError, match="may create pods in this namespace"):
        tenancy.cluster.kubectl(*patch, '{"spec": {"replicas": 2}}')
    tenancy.cluster.kubectl(*patch, json.dumps({"spec": {"podTemplate": None}}))
    tenancy.cluster.kubectl(*patch, json.dumps({"spec": {"podTemplate": {"spec": runtime(resources={})}}}))


def test_kubernetes_own_roles_give_users_their_rights(tenancy: Tenancy) -> None:
    def may(user: str, verb: str, *resource: str, namespace: str = tenancy.namespace) -> bool:
        try:
            tenancy.cluster.kubectl("--namespace", namespace, "--as", user, "auth", "can-i", "--quiet", verb, *resource)
        except LocalClusterError:
            return False
        return True

    pools = "adapterdeployments.graft.dev"
    assert may(DEVELOPER, "create", pools)
    assert may(DEVELOPER, "patch", pools, "--subresource=scale")
    assert may(DEVELOPER, "watch", pools)
    assert not may(DEVELOPER, "patch", pools, "--subresource=status")
    assert not may(DEVELOPER, "create", pools, namespace="default")
    assert may(READER, "list", pools)
    assert not may(READER, "create", pools)
