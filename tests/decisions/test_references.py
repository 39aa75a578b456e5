"""Claims and Secrets that a spec names: the administrator says by labels which ones pools may use."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from graft_operator.decisions.plan import make_plan
from graft_operator.decisions.references import Known, read_referred, reference_fault, references_of
from graft_operator.resource import parse_spec

from tests.support.pools import NOW, SETTINGS, fresh, spec_of, told

LABELS = {"graft.dev/usable": "true"}
LIMITED = replace(SETTINGS, allowed_claims=LABELS, allowed_secrets=LABELS)
HUB = {"name": "hub", "uriPrefixes": ["hf://acme/"], "secretName": "hub", "endpoint": "https://hub.example:8443"}
CLAIM, SECRET = ("PersistentVolumeClaim", "shelf"), ("Secret", "hub")
VOLUME = {"volumes": [{"name": "cache", "persistentVolumeClaim": {"claimName": "scratch"}}]}


def spec(**fields: Any) -> dict[str, Any]:
    return spec_of(sources=[{"name": "shelf", "claimName": "shelf"}, HUB], **fields)


def body(labels: dict[str, str] | None = LABELS, hosts: str | None = None, type: str = "Opaque") -> dict[str, Any]:  # noqa: A002
    data = {} if hosts is None else {"hosts": base64.b64encode(hosts.encode()).decode()}
    return {"metadata": {"name": "x", "labels": labels}, "type": type, "data": {"token": "c2VjcmV0", **data}}


FINE: Known = {CLAIM: read_referred(body()), SECRET: read_referred(body(hosts="hub.example:8443"))}


def test_nothing_is_looked_up_where_the_administrator_says_nothing() -> None:
    assert list(references_of(parse_spec(spec(podTemplate={"spec": VOLUME})), SETTINGS)) == []


def test_claims_of_sources_and_of_the_overlay_are_looked_up_and_secrets_of_sources() -> None:
    found = {(each.kind, each.name) for each in references_of(parse_spec(spec(podTemplate={"spec": VOLUME})), LIMITED)}
    assert found == {CLAIM, SECRET, ("PersistentVolumeClaim", "scratch")}
    claims = replace(SETTINGS, allowed_claims=LABELS)
    assert {each.kind for each in references_of(parse_spec(spec()), claims)} == {"PersistentVolumeClaim"}


def test_the_claim_of_a_shared_cache_is_one_that_pools_may_use() -> None:
    shared = parse_spec(spec(cache={"claimName": "shared"}))
    fault = reference_fault(shared, FINE, LIMITED)
    assert fault is not None
    assert (fault.code, fault.field) == ("FieldNotAllowed", "spec.cache.claimName")
    assert (
        reference_fault(shared, {**FINE, ("PersistentVolumeClaim", "shared"): read_referred(body())}, LIMITED) is None
    )


def test_of_a_secret_nothing_but_labels_type_and_hosts_is_kept() -> None:
    read = read_referred(body(hosts="hub.example"))
    assert (read.labels, read.type, read.hosts) == (LABELS, "Opaque", ("hub.example",))
    assert "c2VjcmV0" not in str(read)
    assert read_referred(body(None)).labels == {}
    assert read_referred({"metadata": {}, "data": {"hosts": "no base64!"}}).hosts == ()


def test_the_secret_of_api_keys_is_one_that_pools_may_use() -> None:
    keys = parse_spec(spec(apiKeys={"secretName": "keys"}))
    fault = reference_fault(keys, FINE, LIMITED)
    assert fault is not None
    assert (fault.code, fault.field) == ("FieldNotAllowed", "spec.apiKeys.secretName")
    assert reference_fault(keys, {**FINE, ("Secret", "keys"): read_referred(body())}, LIMITED) is None


CASES = [
    ({}, None, ""),
    (
        {CLAIM: None},
        "FieldNotAllowed",
        "spec.sources[shelf].claimName names the PersistentVolumeClaim `shelf`, which is",
    ),
    ({CLAIM: read_referred(body({"a": "b"}))}, "FieldNotAllowed", "without the labels graft.dev/usable=true"),
    ({SECRET: None}, "FieldNotAllowed", "spec.sources[hub].secretName names the Secret `hub`, which is not there"),
    ({SECRET: read_referred(body(None, "hub.example:8443"))}, "FieldNotAllowed", "allowedSecrets"),
    ({SECRET: read_referred(body())}, "TokenNotBound", "its key `hosts` names no host"),
    ({SECRET: read_referred(body(hosts="hub.example"))}, "TokenNotBound", "add hub.example:8443 to the Secret's key"),
    (
        {SECRET: read_referred(body(hosts="hub.example:8443", type="kubernetes.io/service-account-token"))},
        "TokenNotBound",
        "service account",
    ),
]


@pytest.mark.parametrize(("known", "code", "words"), CASES, ids=lambda value: value if isinstance(value, str) else "")
def test_what_may_not_be_used_is_told_by_field_and_name(known: Known, code: str | None, words: str) -> None:
    fault = reference_fault(parse_spec(spec()), {**FINE, **known}, LIMITED)
    assert (fault and fault.code) == code
    assert fault is None or (words in fault.message and fault.hint)


def test_no_pod_is_made_and_it_is_looked_up_again_within_a_minute() -> None:
    plan = make_plan(fresh(spec(), referred={**FINE, CLAIM: None}), LIMITED, NOW)
    assert told(plan)["Stalled"] == ("True", "FieldNotAllowed")
    assert "Deployment" not in {apply.body["kind"] for apply in plan.workload}
    assert plan.requeue_after <= 60
    allowed = make_plan(fresh(spec(), referred=FINE), LIMITED, NOW)
    assert "Deployment" in {apply.body["kind"] for apply in allowed.workload}
