"""hf:// in a spec: which URIs need an entry, what reaches the pods, which commit they are to serve."""

from __future__ import annotations

from typing import Any

import pytest
from graft_operator.adapter_sets import plan_adapters
from graft_operator.api import AdapterDeploymentSpec, AdapterDeploymentStatus, find_source, parse_spec
from graft_operator.checks import adapter_fault, base_fault
from graft_operator.objects import Pool
from graft_operator.objects.config_maps import build_runtime_config
from graft_operator.objects.pod import build_pod_spec
from graft_operator.observed import Observed, PoolView, ResolvedSource
from graft_operator.settings import Settings
from graft_runtime.contract import Source

SETTINGS = Settings("ns", "image", allowed_networks=("10.0.0.0/8",))
DIGEST = "sha256:" + "1" * 64
COMMIT = "c1899de289a04d12100db370d81485cdf75e47ca"
HUB = {"name": "hub", "uriPrefixes": ["hf://acme/"], "secretName": "token-of-acme"}
MIRROR = {"name": "mirror", "uriPrefixes": ["hf://acme/open/"], "endpoint": "https://hub.example.com"}


def spec_of(*sources: dict[str, Any]) -> AdapterDeploymentSpec:
    billing = {"name": "billing", "uri": "hf://acme/billing", "revision": "v1"}
    return parse_spec({"baseModel": {"uri": "hf://acme/base"}, "sources": list(sources), "adapters": [billing]})


def test_the_hub_needs_no_entry_but_the_administrator_can_forbid_it() -> None:
    spec = spec_of()
    assert base_fault(spec, SETTINGS) is None
    assert adapter_fault(spec, spec.adapters[0], SETTINGS) is None
    fault = base_fault(spec, Settings("ns", "image", allowed_schemes=("pvc",)))
    assert fault is not None
    assert "the administrator allows pvc" in fault.message


@pytest.mark.parametrize(
    ("uri", "name"),
    [
        ("hf://acme/billing", "hub"),
        ("hf://acme/open", "mirror"),
        ("hf://acme/open/sub", "mirror"),
        ("hf://acme/opener", "hub"),
        ("hf://acme-labs/billing", None),
    ],
)
def test_the_longest_prefix_of_whole_parts_decides(uri: str, name: str | None) -> None:
    found = find_source(spec_of(HUB, MIRROR).sources, uri)
    assert (found.name if found else None) == name


def test_the_secret_is_mounted_and_never_copied() -> None:
    pool = Pool("team", "support", "uid", 1, spec_of(HUB, MIRROR))
    pod = build_pod_spec(pool, SETTINGS, "hash")
    (container,) = pod["containers"]
    secret = {"secretName": "token-of-acme", "optional": True}
    assert [volume["secret"] for volume in pod["volumes"] if "secret" in volume] == [secret]
    assert {"name": "source-hub", "mountPath": "/graft/sources/hub", "readOnly": True} in container["volumeMounts"]
    assert container["args"][-5:] == ["--source-mount", "hub", "/graft/sources/hub", "--allowed-network", "10.0.0.0/8"]
    hub, mirror = build_runtime_config(pool).sources
    assert (hub.kind, hub.uri_prefixes, hub.endpoint) == ("hub", ("hf://acme/",), None)
    assert mirror.endpoint == "https://hub.example.com"


def test_the_commit_that_was_found_travels_with_the_digest() -> None:
    spec = spec_of()
    view = PoolView("team", "support", "uid", 1, {}, AdapterDeploymentStatus())
    source = Source(uri="hf://acme/billing", revision="v1")
    observed = Observed(view, resolutions={source: ResolvedSource(digest=DIGEST, revision=COMMIT)})
    (plan,) = plan_adapters(spec, observed, "hash", SETTINGS)
    assert plan.entry is not None
    assert plan.entry.source == source
    assert plan.entry.exact_source == Source(uri="hf://acme/billing", revision=COMMIT)
