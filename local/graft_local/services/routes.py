"""From Services and pods to what listens where, and what it forwards to. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graft_process_node.kube.conditions import is_ready
from graft_process_node.kube.selectors import matches_labels

Address = tuple[str, int]


@dataclass(frozen=True)
class Route:
    """One port of a Service.

    Args:
        service_uid: of the Service.
        targets: pods' addresses, in a stable order.
    """

    service_uid: str
    targets: tuple[Address, ...]


def make_routes(services: Iterable[Mapping[str, Any]], pods: Iterable[Mapping[str, Any]]) -> dict[Address, Route]:
    """What listens: ClusterIP and port → where it leads. Services without a selector are someone else's to route."""
    by_namespace: dict[str, list[Mapping[str, Any]]] = {}
    for pod in pods:
        by_namespace.setdefault(pod["metadata"]["namespace"], []).append(pod)
    routes: dict[Address, Route] = {}
    for service in services:
        if not _is_routed(service):
            continue
        metadata, spec = service["metadata"], service["spec"]
        backends = _backends(spec, by_namespace.get(metadata["namespace"], []))
        for port in spec.get("ports") or []:
            if port.get("protocol", "TCP") != "TCP":
                continue
            targets = [target for pod in backends if (target := _target(port, pod)) is not None]
            routes[(spec["clusterIP"], int(port["port"]))] = Route(metadata["uid"], tuple(sorted(targets)))
    return routes


def unsupported_parts(service: Mapping[str, Any]) -> list[str]:
    """What the Service asks for that the proxy does not do, one phrase each."""
    spec = service["spec"]
    kind = spec.get("type", "ClusterIP")
    found = []
    if kind in ("NodePort", "LoadBalancer"):
        found.append(f"spec.type {kind} (its ClusterIP is served)")
    if kind == "ExternalName":
        found.append("spec.type ExternalName (there is no DNS)")
    if spec.get("clusterIP") == "None":
        found.append("spec.clusterIP None (there is no DNS)")
    found += [
        f"spec.ports[{index}].protocol {port['protocol']}"
        for index, port in enumerate(spec.get("ports") or [])
        if port.get("protocol", "TCP") != "TCP"
    ]
    if spec.get("sessionAffinity", "None") != "None":
        found.append(f"spec.sessionAffinity {spec['sessionAffinity']}")
    if spec.get("externalIPs"):
        found.append("spec.externalIPs")
    return found


def _is_routed(service: Mapping[str, Any]) -> bool:
    spec = service["spec"]
    has_address = spec.get("clusterIP") not in (None, "", "None") and spec.get("type") != "ExternalName"
    return has_address and bool(spec.get("selector"))


def _backends(spec: Mapping[str, Any], pods: Iterable[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [
        pod
        for pod in pods
        if matches_labels(spec["selector"], pod["metadata"].get("labels") or {})
        and _takes_traffic(pod, even_unready=bool(spec.get("publishNotReadyAddresses")))
    ]


def _takes_traffic(pod: Mapping[str, Any], *, even_unready: bool) -> bool:
    status = pod.get("status") or {}
    if not status.get("podIP") or status.get("phase") in ("Succeeded", "Failed"):
        return False
    return even_unready or (is_ready(pod) and not pod["metadata"].get("deletionTimestamp"))


def _target(port: Mapping[str, Any], pod: Mapping[str, Any]) -> Address | None:
    wanted = port.get("targetPort") or port["port"]
    if isinstance(wanted, int):
        return pod["status"]["podIP"], wanted
    for container in pod["spec"]["containers"]:
        for declared in container.get("ports") or []:
            if declared.get("name") == wanted:
                return pod["status"]["podIP"], int(declared["containerPort"])
    return None
