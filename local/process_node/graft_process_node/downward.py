"""What a pod may learn about itself: `fieldRef` and `resourceFieldRef`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from graft_process_node.quantity import in_units

_SUBSCRIPT = re.compile(r"metadata\.(?P<kind>labels|annotations)\['(?P<key>[^']+)'\]")


class UnknownFieldError(ValueError):
    """A reference to a field that the downward API of this node does not have."""


@dataclass(frozen=True)
class PodFacts:
    """A pod and where it runs.

    Args:
        pod: the object, as the API server gives it.
        pod_ip, host_ip: its address and the node's.
        node_name: the node.
        allocatable: the node's resources, which stand in for a limit that is not set.
    """

    pod: Mapping[str, Any]
    pod_ip: str
    host_ip: str
    node_name: str
    allocatable: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return str(self.pod["metadata"]["name"])

    @property
    def namespace(self) -> str:
        return str(self.pod["metadata"]["namespace"])

    @property
    def uid(self) -> str:
        return str(self.pod["metadata"]["uid"])


def pod_field(facts: PodFacts, path: str) -> str:
    """The value of `fieldRef.fieldPath`.

    Raises:
        UnknownFieldError: there is no such field.
    """
    metadata = facts.pod["metadata"]
    spec = facts.pod["spec"]
    values = {
        "metadata.name": facts.name,
        "metadata.namespace": facts.namespace,
        "metadata.uid": facts.uid,
        "spec.nodeName": facts.node_name,
        "spec.serviceAccountName": str(spec.get("serviceAccountName") or "default"),
        "status.podIP": facts.pod_ip,
        "status.podIPs": facts.pod_ip,
        "status.hostIP": facts.host_ip,
        "status.hostIPs": facts.host_ip,
    }
    if path in values:
        return values[path]
    if path in ("metadata.labels", "metadata.annotations"):
        return _as_lines(metadata.get(path.partition(".")[2]) or {})
    match = _SUBSCRIPT.fullmatch(path)
    if match:
        return str((metadata.get(match["kind"]) or {}).get(match["key"], ""))
    raise UnknownFieldError(f"fieldPath `{path}` isn't supported by this node")


def resource_field(facts: PodFacts, reference: Mapping[str, Any], container_name: str) -> str:
    """The value of a `resourceFieldRef`, in units of its divisor.

    Raises:
        UnknownFieldError: there is no such container or resource.
    """
    name = reference.get("containerName") or container_name
    containers = [*(facts.pod["spec"].get("initContainers") or []), *facts.pod["spec"]["containers"]]
    container = next((one for one in containers if one["name"] == name), None)
    kind, _, resource = str(reference["resource"]).partition(".")
    if container is None or kind not in ("limits", "requests"):
        raise UnknownFieldError(f"resourceFieldRef `{reference['resource']}` of container `{name}` doesn't exist")
    resources = container.get("resources") or {}
    value = (resources.get(kind) or {}).get(resource)
    if value is None and kind == "limits":
        value = facts.allocatable.get(resource)
    if value is None:
        value = "0"
    return in_units(str(value), str(reference.get("divisor") or "1"))


def _as_lines(pairs: Mapping[str, str]) -> str:
    def quoted(text: str) -> str:
        escaped = text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
        return f'"{escaped}"'

    return "\n".join(f"{key}={quoted(value)}" for key, value in sorted(pairs.items()))
