"""The rights that the chart gives, without a cluster: to the operator, to users; and what admission refuses."""

from __future__ import annotations

from typing import Any

import pytest
from graft_local.errors import LocalClusterError
from graft_operator.kinds import CLAIM, EVENT, KINDS, LEASE, SECRET, Kind, watched_kinds

from tests.support.chart import only, operator_pod, rendered, settings_of

WRITTEN = {"get", "list", "watch", "create", "patch", "delete"}
READ = {"get", "list", "watch"}


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
    "adapters.graft.dev": READ,
    "adapters/status.graft.dev": {"get", "patch"},
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
    assert of_the_cluster == {"graft-view", "graft-edit", "graft-adapters"}, "for users"
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


def test_users_get_their_rights_with_kubernetes_own_roles() -> None:
    documents = rendered()
    view, edit = (only(documents, "ClusterRole", f"graft-{name}") for name in ("view", "edit"))
    assert verbs_of(view["rules"]) == {
        "adapterdeployments.graft.dev": READ,
        "adapterdeployments/status.graft.dev": READ,
        "adapters.graft.dev": READ,
        "adapters/status.graft.dev": READ,
    }
    assert verbs_of(edit["rules"]) == {
        "adapterdeployments.graft.dev": {"create", "update", "patch", "delete", "deletecollection"},
        "adapterdeployments/scale.graft.dev": {"get", "update", "patch"},
        "adapters.graft.dev": {"create", "update", "patch", "delete", "deletecollection"},
    }
    prefix = "rbac.authorization.k8s.io/aggregate-to-"
    added = [{key.removeprefix(prefix) for key in role["metadata"]["labels"] if prefix in key} for role in (view, edit)]
    assert added == [{"view", "edit", "admin"}, {"edit", "admin"}]


def test_a_team_may_be_given_adapters_and_nothing_else() -> None:
    role = only(rendered(), "ClusterRole", "graft-adapters")
    assert verbs_of(role["rules"]) == {
        "adapters.graft.dev": {*READ, "create", "update", "patch", "delete", "deletecollection"},
        "adapters/status.graft.dev": {"get"},
    }
    assert not [key for key in role["metadata"]["labels"] if "aggregate-to" in key], "no role has it by itself"


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
