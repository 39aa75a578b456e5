"""NetworkPolicies that select a pod: accepted, not enforced."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_process_node.kube.api_client import UNREACHABLE, ApiClient, ApiError
from graft_process_node.kube.selectors import matches_selector


async def unenforced_policies(client: ApiClient, pod: Mapping[str, Any]) -> list[str]:
    """The names of the NetworkPolicies that select the pod now, each as `NetworkPolicy NAME`."""
    metadata = pod["metadata"]
    try:
        found = await client.list(f"/apis/networking.k8s.io/v1/namespaces/{metadata['namespace']}/networkpolicies")
    except (ApiError, *UNREACHABLE):  # it is for an event only
        return []
    labels = metadata.get("labels") or {}
    return [
        f"NetworkPolicy {policy['metadata']['name']}"
        for policy in found["items"]
        if matches_selector(policy["spec"].get("podSelector") or {}, labels)
    ]
