"""Sources over the network, as the operator sees them: what pods are told, mounted and asked."""

from __future__ import annotations

import base64
from dataclasses import replace
from typing import Any

import pytest
from graft_operator import objects
from graft_operator.decisions.adapter_sets import AdapterPlan, plan_adapters, sources_to_remember
from graft_operator.decisions.adapter_status import adapter_status
from graft_operator.decisions.checks import adapter_fault
from graft_operator.decisions.observed import Child, Observed, PoolView, ResolvedSource
from graft_operator.decisions.readers import read_child
from graft_operator.decisions.wanted_adapters import inline_adapters
from graft_operator.objects import Pool
from graft_operator.resource import AdapterDeploymentStatus, AdapterStatus, find_source, parse_spec
from graft_operator.settings import Settings
from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import SourceMount
from graft_runtime.errors import GraftError

SETTINGS = Settings(namespace="graft-system", runtime_image="graft-runtime:0.1.0")
COMMIT, LATER = "a" * 40, "b" * 40
DIGEST, OTHER = f"sha256:{'1' * 64}", f"sha256:{'2' * 64}"
PRIVATE = {"name": "hub", "uriPrefixes": ["hf://acme/"], "secretName": "hub-token", "endpoint": "https://hub.example"}
MIRROR = {"name": "mirror", "uriPrefixes": ["hf://acme/mirrored/"], "endpoint": "https://mirror.example"}


def spec_of(**fields: Any) -> dict[str, Any]:
    return {
        "baseModel": {"uri": "hf://acme/base", "revision": "v2"},
        "sources": [PRIVATE, MIRROR],
        "adapters": [{"name": "sql", "uri": "hf://acme/sql", "revision": "v1"}],
        **fields,
    }


def pool(**fields: Any) -> Pool:
    return Pool("team", "support", "uid", 1, parse_spec(spec_of(**fields)))


def container(settings: Settings = SETTINGS, **fields: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    spec = objects.build_deployment(pool(**fields), "hash", settings)["spec"]["template"]["spec"]
    return spec, spec["containers"][0]


def test_pods_are_told_where_to_read_and_at_which_revision() -> None:
    config = objects.build_runtime_config(pool())
    assert config.base_model.name == "base"
    assert config.base_model.source == Source(uri="hf://acme/base", revision="v2")
    assert config.sources == (
        SourceMount(name="hub", kind="remote", uri_prefixes=("hf://acme/",), endpoint="https://hub.example"),
        SourceMount(
            name="mirror", kind="remote", uri_prefixes=("hf://acme/mirrored/",), endpoint="https://mirror.example"
        ),
    )


def test_the_secret_is_a_mount_of_its_token_with_its_hosts_and_nothing_else_of_it() -> None:
    spec, runtime = container()
    (volume,) = [volume for volume in spec["volumes"] if volume["name"].startswith("source-")]
    assert volume == {
        "name": "source-hub",
        "secret": {
            "secretName": "hub-token",
            "items": [{"key": "token", "path": "token"}, {"key": "hosts", "path": "hosts"}],
            "optional": True,
        },
    }
    (mount,) = [mount for mount in runtime["volumeMounts"] if mount["name"].startswith("source-")]
    assert mount == {"name": "source-hub", "mountPath": "/graft/sources/hub", "readOnly": True}
    arguments = " ".join(runtime["args"])
    assert arguments.count("--source-mount") == 1
    assert "--source-mount hub /graft/sources/hub" in arguments
    assert (
        "hub-token"
        not in objects.build_config_map(pool(), objects.build_runtime_config(pool()))["data"]["runtime-config.json"]
    )


def test_allowed_networks_are_arguments_and_change_no_hash() -> None:
    allowing = replace(SETTINGS, allowed_networks=("fd00::/8", "10.0.0.0/8"))
    assert container(allowing)[1]["args"][-4:] == ["--allowed-network", "10.0.0.0/8", "--allowed-network", "fd00::/8"]
    assert "--allowed-network" not in container()[1]["args"]


def test_allowed_hosts_are_arguments_and_change_no_hash() -> None:
    allowing = replace(SETTINGS, allowed_endpoints=("*.hf.co", "huggingface.co"))
    assert container(allowing)[1]["args"][-4:] == ["--allowed-host", "*.hf.co", "--allowed-host", "huggingface.co"]
    assert "--allowed-host" not in container()[1]["args"]


def test_an_administrator_may_have_no_page() -> None:
    assert container(replace(SETTINGS, page=False))[1]["args"][-1] == "--no-page"
    assert "--no-page" not in container()[1]["args"]


@pytest.mark.parametrize(
    ("uri", "hosts", "allowed"),
    [
        ("hf://anybody/sql", (), True),
        ("hf://anybody/sql", ("huggingface.co",), True),
        ("hf://anybody/sql", ("hub.example",), False),
        ("hf://acme/sql", ("HUB.example",), True),
        ("hf://acme/sql", ("*.example",), True),
        ("hf://acme/sql", ("*.hub.example", "ub.example"), False),
        ("hf://acme/mirrored/sql", ("hub.example",), False),
        ("https://models.example:8443/sql.zip", ("models.example",), True),
        ("https://models.example.evil/sql.zip", ("models.example",), False),
    ],
)
def test_the_administrator_lists_hosts(uri: str, hosts: tuple[str, ...], allowed: bool) -> None:
    settings = replace(SETTINGS, allowed_schemes=("hf", "https"), allowed_endpoints=hosts)
    spec = pool(adapters=[{"name": "sql", "uri": uri}])
    fault = adapter_fault(spec.spec, inline_adapters(spec)[0], settings)
    assert (fault is None) == allowed
    assert fault is None or (fault.code, "allowedEndpoints" in (fault.hint or "")) == ("ForbiddenAddress", True)


def test_a_source_sends_its_token_to_one_host_for_each_of_its_prefixes() -> None:
    prefixes = ["https://Models.example:8443/a/", "https://models.example/", "hf://acme/", "hf://other/"]
    web = {"name": "web", "uriPrefixes": prefixes, "secretName": "s"}
    sources = {source.name: source.hosts for source in parse_spec(spec_of(sources=[PRIVATE, web])).sources}
    assert sources["web"] == ("models.example:8443", "models.example", "huggingface.co")
    assert sources["hub"] == ("hub.example",)


def test_the_deepest_prefix_speaks() -> None:
    sources = parse_spec(spec_of()).sources
    found = [find_source(sources, uri) for uri in ("hf://acme/sql", "hf://acme/mirrored/sql", "hf://acme2/sql")]
    assert [source and source.name for source in found] == ["hub", "mirror", None]


@pytest.mark.parametrize(
    ("uri", "schemes", "allowed"),
    [
        ("hf://anybody/sql", ("hf", "pvc"), True),
        ("hf://anybody/sql", ("pvc",), False),
        ("https://models.example/sql.zip", ("hf", "pvc"), False),
        ("https://models.example/sql.zip", ("https",), True),
    ],
)
def test_what_is_public_needs_a_scheme_and_no_entry(uri: str, schemes: tuple[str, ...], allowed: bool) -> None:
    spec = parse_spec(spec_of(adapters=[{"name": "sql", "uri": uri}]))
    fault = adapter_fault(
        spec,
        inline_adapters(pool(adapters=[{"name": "sql", "uri": uri}]))[0],
        replace(SETTINGS, allowed_schemes=schemes),
    )
    assert (fault is None) is allowed


def planned(observed: Observed, **fields: Any) -> AdapterPlan:
    (plan,) = plan_adapters(pool(**fields).spec, inline_adapters(pool(**fields)), observed, "hash", SETTINGS)
    return plan


def observed(*children: Child, status: AdapterDeploymentStatus | None = None, **more: Any) -> Observed:
    view = PoolView("team", "support", "uid", 1, spec_of(), status or AdapterDeploymentStatus())
    return Observed(view, children=children, **more)


def stored(plan: AdapterPlan) -> Child:
    assert plan.entry is not None
    adapter_set = AdapterSet(pool_uid="uid", config_hash="hash", generation=1, adapters=(plan.entry,))
    body = objects.build_adapter_set_config_map(pool(), adapter_set)
    body["metadata"] |= {"uid": "u", "resourceVersion": "1"}
    assert base64.b64decode(body["binaryData"]["adapter-set.json.gz"])
    return read_child("ConfigMap", body)


ASKED = Source(uri="hf://acme/sql", revision="v1")
ANSWER = {ASKED: ResolvedSource(digest=DIGEST, revision=COMMIT)}


def test_a_tag_is_resolved_to_the_commit_that_every_pod_reads() -> None:
    assert planned(observed()).unresolved == ASKED
    entry = planned(observed(resolutions=ANSWER)).entry
    assert entry is not None
    assert (entry.digest, entry.revision, entry.source) == (DIGEST, COMMIT, ASKED)
    assert entry.wanted is not None
    assert entry.wanted.exact_source == Source(uri="hf://acme/sql", revision=COMMIT)


def test_what_was_resolved_outlives_the_operator_and_a_move_of_the_tag() -> None:
    first = planned(observed(resolutions=ANSWER))
    moved = {ASKED: ResolvedSource(digest=OTHER, revision=LATER)}
    assert planned(observed(stored(first))).entry == first.entry
    assert planned(observed(stored(first), resolutions=moved)).entry == first.entry
    assert sources_to_remember([first], observed(stored(first)), "hash") == frozenset()


def test_the_status_is_enough_to_remember_a_commit() -> None:
    told = AdapterDeploymentStatus(
        adapters=(
            AdapterStatus(name="sql", uri="hf://acme/sql", requested_revision="v1", digest=DIGEST, revision=COMMIT),
        )
    )
    entry = planned(observed(status=told)).entry
    assert entry is not None
    assert (entry.digest, entry.revision) == (DIGEST, COMMIT)
    other = planned(observed(status=told), adapters=[{"name": "sql", "uri": "hf://acme/sql", "revision": "v2"}])
    assert other.unresolved == Source(uri="hf://acme/sql", revision="v2")


def test_another_revision_is_another_source_and_the_old_one_serves_until_it_is_there() -> None:
    first = planned(observed(resolutions=ANSWER))
    wanted = [{"name": "sql", "uri": "hf://acme/sql", "revision": "v2"}]
    waiting = planned(observed(stored(first)), adapters=wanted)
    assert (waiting.entry, waiting.unresolved) == (first.entry, Source(uri="hf://acme/sql", revision="v2"))
    answer = {Source(uri="hf://acme/sql", revision="v2"): ResolvedSource(digest=OTHER, revision=LATER)}
    entry = planned(observed(stored(first), resolutions=answer), adapters=wanted).entry
    assert entry is not None
    assert (entry.digest, entry.revision) == (OTHER, LATER)


def test_a_digest_in_the_spec_needs_no_resolution() -> None:
    plan = planned(observed(), adapters=[{"name": "sql", "uri": "hf://acme/sql", "revision": "v1", "digest": OTHER}])
    assert plan.unresolved is None
    assert plan.entry is not None
    assert plan.entry.wanted is not None
    assert (plan.entry.digest, plan.entry.wanted.exact_source) == (OTHER, ASKED)


def test_the_status_shows_what_was_asked_and_what_it_is() -> None:
    world = observed(resolutions=ANSWER)
    status = adapter_status(pool(), world, planned(world), [], 0.0)
    assert (status.uri, status.requested_revision, status.revision) == ("hf://acme/sql", "v1", COMMIT)


def test_a_source_without_revisions_refuses_one() -> None:
    with pytest.raises(GraftError, match="1 fault") as caught:
        parse_spec(spec_of(adapters=[{"name": "sql", "uri": "https://models.example/a.zip", "revision": "v1"}]))
    assert "revision is for hf:// only" in caught.value.message
