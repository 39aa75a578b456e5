"""What the builders make of a pool: names, labels, owners, the small objects and what pods are told."""

from __future__ import annotations

import base64
from dataclasses import replace
from ipaddress import ip_address, ip_network
from typing import Any

import pytest
import yaml
from graft_operator import objects
from graft_operator.settings import Settings
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import RuntimeConfig

from tests.support.pools import make_pool

SETTINGS = Settings(namespace="graft-system", runtime_image="graft-runtime:0.1.0")


SET = AdapterSet(
    pool_uid="11-22",
    config_hash="abc",
    generation=4,
    adapters=(AdapterEntry(name="billing", source=Source(uri="pvc://models/billing")),),
)
BUILT = [
    objects.build_deployment(make_pool(), "abc", SETTINGS),
    objects.build_service(make_pool()),
    objects.build_config_map(make_pool(), objects.build_runtime_config(make_pool())),
    objects.build_adapter_set_config_map(make_pool(), SET),
    objects.build_keys_config_map(make_pool(), {"0123": "PEM"}),
    objects.build_disruption_budget(make_pool()),
    objects.build_network_policy(make_pool(), SETTINGS),
]


@pytest.mark.parametrize("built", BUILT, ids=lambda built: f"{built['kind']}-{built['metadata']['name']}")
def test_every_object_is_owned_labelled_and_in_the_pool_s_namespace(built: dict[str, Any]) -> None:
    metadata = built["metadata"]
    assert metadata["namespace"] == "team-a"
    assert metadata["ownerReferences"] == [
        {
            "apiVersion": "graft.dev/v1alpha1",
            "kind": "AdapterDeployment",
            "name": "support",
            "uid": "11-22",
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]
    assert metadata["labels"]["app.kubernetes.io/managed-by"] == "graft"
    assert metadata["labels"]["graft.dev/deployment"] == "support"


def test_the_service_routes_to_the_api_port_alone() -> None:
    assert yaml.safe_dump(objects.build_service(make_pool())["spec"]) == (
        "ports:\n- appProtocol: http\n  name: http\n  port: 8000\n  protocol: TCP\n  targetPort: http\n"
        "selector:\n  graft.dev/deployment: support\ntype: ClusterIP\n"
    )
    assert objects.url_of(make_pool()) == "http://support.team-a.svc:8000/v1"


def test_the_network_policy_opens_the_control_port_to_the_operator_and_the_pool_s_pods_alone() -> None:
    anyone, operator, scrapers = objects.build_network_policy(make_pool(), SETTINGS)["spec"]["ingress"]
    assert anyone == {"ports": [{"port": 8000, "protocol": "TCP"}]}
    assert operator["ports"] == [{"port": 8001, "protocol": "TCP"}]
    assert operator["from"] == [
        {
            "namespaceSelector": {"matchLabels": {"kubernetes.io/metadata.name": "graft-system"}},
            "podSelector": {"matchLabels": {"graft.dev/component": "operator"}},
        },
        {"podSelector": {"matchLabels": {"graft.dev/deployment": "support"}}},
    ]
    assert scrapers == {
        "from": [{"namespaceSelector": {"matchLabels": {"graft.dev/metrics": "scraped"}}}],
        "ports": [{"port": 8002, "protocol": "TCP"}],
    }


def test_the_api_port_is_open_to_the_administrator_s_peers() -> None:
    peers = ({"namespaceSelector": {"matchLabels": {"team": "gateway"}}}, {"ipBlock": {"cidr": "10.0.0.0/8"}})
    spec = objects.build_network_policy(make_pool(), replace(SETTINGS, api_peers=peers))["spec"]
    assert spec["ingress"][0] == {"from": [*peers], "ports": [{"port": 8000, "protocol": "TCP"}]}


def reached(address: str, **settings: Any) -> bool:
    """Whether the policy lets a pod connect to an address, at a port other than DNS'."""
    spec = objects.build_network_policy(make_pool(), replace(SETTINGS, **settings))["spec"]
    assert "Egress" in spec["policyTypes"]
    blocks = [to["ipBlock"] for rule in spec["egress"] if "ports" not in rule for to in rule["to"]]
    return any(
        ip_address(address) in ip_network(block["cidr"])
        and not any(ip_address(address) in ip_network(network) for network in block.get("except", ()))
        for block in blocks
    )


@pytest.mark.parametrize(
    "address", ["169.254.169.254", "168.63.129.16", "10.96.0.1", "192.168.1.1", "127.0.0.1", "fd00:ec2::254", "fe80::1"]
)
def test_pods_reach_no_address_inside_unless_the_administrator_allows_its_network(address: str) -> None:
    assert not reached(address)
    assert not reached(address, allowed_networks=("10.20.0.0/16", "fd00:aaaa::/32"))
    assert reached(address, allowed_networks=(str(ip_network(address)),))


def test_pods_reach_public_addresses_and_dns_where_sources_may_be_there() -> None:
    assert reached("1.1.1.1")
    assert reached("2606:4700::1111")
    pods, dns, _ = objects.build_network_policy(make_pool(), SETTINGS)["spec"]["egress"]
    assert pods == {
        "to": [{"podSelector": {"matchLabels": {"graft.dev/deployment": "support"}}}],
        "ports": [{"port": 8001, "protocol": "TCP"}],
    }
    assert dns == {"ports": [{"port": 53, "protocol": "UDP"}, {"port": 53, "protocol": "TCP"}]}
    mounted = replace(SETTINGS, allowed_schemes=("pvc", "file"))
    assert objects.build_network_policy(make_pool(), mounted)["spec"]["egress"] == [pods]


def test_a_pool_of_no_pods_has_no_disruption_budget() -> None:
    assert objects.build_disruption_budget(make_pool(replicas=0)) is None
    budget = objects.build_disruption_budget(make_pool(replicas=1))
    assert budget is not None
    assert budget["spec"] == {"maxUnavailable": 1, "selector": {"matchLabels": {"graft.dev/deployment": "support"}}}


def test_the_runtime_config_says_what_the_spec_says() -> None:
    config = objects.build_runtime_config(
        make_pool(
            baseModel={"uri": "pvc://models/gemma", "name": "chat", "dtype": "float32", "task": "SEQ_CLS"},
            sources=[{"name": "shelf", "mountPath": "/mnt/shelf"}, {"name": "models", "claimName": "models"}],
            engine={"maxRank": 8},
            cache={"size": "1000"},
            adapterStartupSeconds=5,
            composition=True,
            allowedOrigins=["https://chat.example.com"],
            terminationGracePeriodSeconds=30,
        )
    )
    assert yaml.safe_dump(config.model_dump(mode="json", by_alias=True, exclude_defaults=True)) == (
        "adapterStartupSeconds: 5\n"
        "allowedOrigins:\n- https://chat.example.com\n"
        "baseModel:\n  dtype: float32\n  name: chat\n  source:\n    uri: pvc://models/gemma\n  task: SEQ_CLS\n"
        "cacheBytes: 950\n"
        "composition: true\n"
        "drainSeconds: 20\n"
        "engine:\n  maxRank: 8\n"
        "poolUid: 11-22\n"
        "sources:\n- kind: claim\n  name: models\n"
        "- kind: directory\n  name: shelf\n  uriPrefixes:\n  - file:///mnt/shelf/\n"
    )


def config_hash(**fields: Any) -> str:
    return objects.build_runtime_config(make_pool(**fields)).config_hash()


@pytest.mark.parametrize(
    "fields",
    [
        {"adapters": []},
        {"replicas": 7},
        {"suspend": True},
        {"strategy": {"maxSurge": 0, "maxUnavailable": 1}},
        {"podTemplate": {"metadata": {"labels": {"team": "a"}}}},
        {"engine": {"maxRank": 64}},  # the default, written out
    ],
    ids=str,
)
def test_what_pods_are_not_born_with_keeps_the_config_hash(fields: dict[str, Any]) -> None:
    assert config_hash(**fields) == config_hash()


@pytest.mark.parametrize(
    "fields",
    [
        {"baseModel": {"uri": "pvc://models/gemma", "dtype": "float32"}},
        {"baseModel": {"uri": "pvc://models/gemma", "task": "CAUSAL_LM"}},
        {"engine": {"maxRank": 8}},
        {"terminationGracePeriodSeconds": 60},
        {"sources": [{"name": "models", "claimName": "m"}, {"name": "shelf", "claimName": "s"}]},
    ],
    ids=str,
)
def test_what_pods_are_born_with_changes_the_config_hash(fields: dict[str, Any]) -> None:
    assert config_hash(**fields) != config_hash()


def test_the_order_of_sources_rolls_nothing() -> None:
    sources = [{"name": "models", "claimName": "models"}, {"name": "shelf", "claimName": "shelf"}]
    forward, backward = make_pool(sources=sources), make_pool(sources=sources[::-1])
    assert objects.build_runtime_config(forward).config_hash() == objects.build_runtime_config(backward).config_hash()
    assert objects.build_deployment(forward, "abc", SETTINGS) == objects.build_deployment(backward, "abc", SETTINGS)


def test_the_config_map_holds_the_config_and_bears_its_hash() -> None:
    built = objects.build_config_map(make_pool(), objects.build_runtime_config(make_pool()))
    config = RuntimeConfig.read(built["data"]["runtime-config.json"])
    assert config == objects.build_runtime_config(make_pool())
    assert built["metadata"]["name"] == f"support-config-{config.config_hash()}"
    assert built["metadata"]["labels"]["graft.dev/config-hash"] == config.config_hash()


def test_the_adapter_set_is_read_back_as_it_was_written() -> None:
    built = objects.build_adapter_set_config_map(make_pool(), SET)
    assert built["metadata"]["name"] == "support-set-abc"
    assert objects.read_adapter_set(built) == SET
    assert objects.build_adapter_set_config_map(make_pool(), SET) == built


@pytest.mark.parametrize(
    "config_map",
    [
        {},
        {"binaryData": None},
        {"binaryData": {"adapter-set.json.gz": "%%%"}},
        {"binaryData": {"adapter-set.json.gz": base64.b64encode(b"no gzip").decode()}},
        {"binaryData": {"adapter-set.json.gz": base64.b64encode(SET.to_gzip()[:20]).decode()}},
    ],
    ids=["empty", "null", "not-base64", "not-gzip", "truncated"],
)
def test_a_config_map_without_a_readable_set_holds_none(config_map: dict[str, Any]) -> None:
    assert objects.read_adapter_set(config_map) is None


def test_the_public_keys_are_files_named_by_their_id() -> None:
    built = objects.build_keys_config_map(make_pool(), {"ffff": "second", "0000": "first"})
    assert built["metadata"]["name"] == "support-keys"
    assert list(built["data"].items()) == [("0000.pem", "first"), ("ffff.pem", "second")]
