"""How a pod's clients reach the API server: a KUBECONFIG with the ServiceAccount's token, in place of a mount."""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_process_node.downward import PodFacts
from graft_process_node.kube.api_client import ApiClient
from graft_process_node.process_spec import service_account_mount


def write_kubeconfig(
    client: ApiClient, container: Mapping[str, Any], facts: PodFacts, volumes: Mapping[str, Path], directory: Path
) -> Path | None:
    """Write the pod's kubeconfig if the container has its ServiceAccount's token mounted.

    It names the token's file, which follows each renewal, and the pod's namespace.

    Returns:
        The file, or None for a pod without access to the API.
    """
    volume = service_account_mount(container)
    if volume is None or volume not in volumes:
        return None
    config = kubeconfig(client.server, client.certificate_authority, volumes[volume] / "token", facts.namespace)
    path = directory / "kubeconfig"
    temporary = directory / f"kubeconfig.{container['name']}"
    temporary.write_text(json.dumps(config, indent=1))
    temporary.replace(path)
    return path


def kubeconfig(server: str, certificate_authority: bytes, token_file: Path, namespace: str) -> dict[str, Any]:
    """A kubeconfig with one context."""
    name = "local"
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [
            {
                "name": name,
                "cluster": {
                    "server": server,
                    "certificate-authority-data": base64.b64encode(certificate_authority).decode(),
                },
            }
        ],
        "users": [{"name": "service-account", "user": {"tokenFile": str(token_file)}}],
        "contexts": [{"name": name, "context": {"cluster": name, "user": "service-account", "namespace": namespace}}],
        "current-context": name,
    }
