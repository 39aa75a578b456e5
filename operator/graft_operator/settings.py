"""What the operator is started with: its command line, parsed once."""

from __future__ import annotations

import argparse
import ipaddress
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from graft_runtime.contract.schemes import SCHEMES

from graft_operator.quantities import QUANTITY_PATTERN

DEFAULT_SCHEMES = tuple(scheme.name for scheme in SCHEMES.values() if scheme.allowed)
FIELD_MANAGER = "graft"


@dataclass(frozen=True)
class PodDefaults:
    """What the administrator lays over the pods of every pool; spec.podTemplate comes after it."""

    labels: Mapping[str, str] = field(default_factory=dict)
    annotations: Mapping[str, str] = field(default_factory=dict)
    spec: Mapping[str, Any] = field(default_factory=dict)
    """A partial pod spec, as in spec.podTemplate."""


@dataclass(frozen=True)
class Settings:
    """The operator's settings; the chart's values write them."""

    namespace: str
    """The operator's own namespace: it holds the signing key."""
    runtime_image: str
    runtime_image_pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pod_defaults: PodDefaults = PodDefaults()
    accelerator_resource: str = "nvidia.com/gpu"
    """The extended resource of pools that name none."""
    cache_size: str = "100Gi"
    """Of the caches of pools that name none."""
    adapter_size: str = "4Gi"
    """The most that the files of one adapter may have, in pools that name no other."""
    bind_address: Literal["all", "podIP"] = "all"
    """Where a pod's servers listen: on all addresses or on status.podIP alone."""
    health_address: str = "0.0.0.0"  # noqa: S104 - probes and metrics come from outside the pod
    health_port: int = 8080
    watch_namespaces: tuple[str, ...] = ()
    """Empty: the whole cluster."""
    allowed_schemes: tuple[str, ...] = DEFAULT_SCHEMES
    """Schemes of URIs that the administrator lets pools use."""
    allowed_networks: tuple[str, ...] = ()
    """Networks (CIDR) that remote sources may be in, beside public addresses."""
    api_peers: tuple[Mapping[str, Any], ...] = ()
    """NetworkPolicyPeers that may ask the API port of pools; empty: everybody."""
    allowed_endpoints: tuple[str, ...] = ()
    """Hosts that remote sources may be on, such as hub.example or *.hub.example; empty: any."""
    allowed_claims: Mapping[str, str] = field(default_factory=dict)
    """Labels that a claim must bear to be mounted into the pods of a pool; empty: any claim of its namespace."""
    allowed_secrets: Mapping[str, str] = field(default_factory=dict)
    """Labels that the Secret of a source must bear; empty: any Secret that names the hosts of its token."""
    allowed_pod_template_fields: tuple[str, ...] = ()
    """What spec.podTemplate.spec may hold beside the fields that it always may: paths, each with all below it."""
    page: bool = True
    """The API's port of pools has a page for people at `/`."""
    signing_key_secret: str = "graft-signing-key"  # noqa: S105 - the name of a Secret
    """The Secret in `namespace` with the key that signs tokens for the pods' control ports."""
    lease: str = "graft-operator"
    """The Lease in `namespace` whose holder leads: of the operators that name it, one writes."""
    lease_seconds: int = 15
    """For how long the leader may be silent until another one leads."""
    identity: str = ""
    """Of this operator among those that stand by; no two that run may have the same. Empty: a new one at each start."""
    log_level: Literal["debug", "info", "warning", "error"] = "info"


def parse_settings(arguments: Sequence[str]) -> Settings:
    """Read the arguments after `graft-operator run`; end the process with a message for bad ones."""
    parsed = vars(_parser().parse_args(arguments))
    lists = {name: tuple(value) for name, value in parsed.items() if isinstance(value, list)}
    return Settings(**parsed | lists | {"allowed_schemes": lists["allowed_schemes"] or DEFAULT_SCHEMES})


def port(text: str) -> int:
    port = int(text)
    if not 1 <= port <= 65_535:
        raise argparse.ArgumentTypeError(f"{text} is no port: expected 1 to 65535")
    return port


def pod_defaults(text: str) -> PodDefaults:
    """Read `{"metadata": {"labels": …, "annotations": …}, "spec": …}`, whose inside the chart's schema has checked."""
    try:
        value = json.loads(text)
        return PodDefaults(**value.pop("metadata", {}), **value)
    except (ValueError, TypeError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{error}: expected JSON with metadata and spec of a pod template") from error


def lease_seconds(text: str) -> int:
    seconds = int(text)
    if not 3 <= seconds <= 3600:
        raise argparse.ArgumentTypeError(f"{text} is no duration of a lease: expected 3 to 3600 seconds")
    return seconds


def quantity(text: str) -> str:
    if re.fullmatch(QUANTITY_PATTERN, text) is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no size: expected one such as 100Gi")
    return text


def peers(text: str) -> tuple[Mapping[str, Any], ...]:
    """Read a JSON list of NetworkPolicyPeers."""
    try:
        return tuple(dict(peer) for peer in json.loads(text))
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{error}: expected a JSON list of peers of a NetworkPolicy") from error


def labels(text: str) -> Mapping[str, str]:
    """Read `{"KEY": "VALUE"}`."""
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise argparse.ArgumentTypeError(f"{error}: expected JSON with labels") from error


def network(text: str) -> str:
    try:
        return str(ipaddress.ip_network(text))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{error}: expected a network such as 10.0.0.0/8") from error


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="graft-operator run", allow_abbrev=False)
    parser.add_argument("--namespace", required=True)
    parser.add_argument("--runtime-image", required=True)
    parser.add_argument(
        "--runtime-image-pull-policy", choices=("Always", "IfNotPresent", "Never"), default="IfNotPresent"
    )
    parser.add_argument("--pod-defaults", type=pod_defaults, default=PodDefaults())
    parser.add_argument("--accelerator-resource", default="nvidia.com/gpu")
    parser.add_argument("--cache-size", type=quantity, default="100Gi")
    parser.add_argument("--adapter-size", type=quantity, default="4Gi")
    parser.add_argument("--bind-address", choices=("all", "podIP"), default="all")
    parser.add_argument("--health-address", default="0.0.0.0")  # noqa: S104
    parser.add_argument("--health-port", type=port, default=8080)
    parser.add_argument("--watch-namespace", dest="watch_namespaces", action="append", default=[])
    parser.add_argument("--allowed-scheme", dest="allowed_schemes", action="append", choices=[*SCHEMES], default=[])
    parser.add_argument("--allowed-network", dest="allowed_networks", action="append", type=network, default=[])
    parser.add_argument("--api-peers", type=peers, default=())
    parser.add_argument("--allowed-endpoint", dest="allowed_endpoints", action="append", default=[])
    parser.add_argument("--allowed-claims", type=labels, default={})
    parser.add_argument("--allowed-secrets", type=labels, default={})
    parser.add_argument("--allowed-pod-template-field", dest="allowed_pod_template_fields", action="append", default=[])
    parser.add_argument("--no-page", dest="page", action="store_false")
    parser.add_argument("--signing-key-secret", required=True)
    parser.add_argument("--lease", default="graft-operator")
    parser.add_argument("--lease-seconds", type=lease_seconds, default=15)
    parser.add_argument("--identity", default="")
    parser.add_argument("--log-level", choices=("debug", "info", "warning", "error"), default="info")
    return parser
