"""How a pod's clients reach the API server: a KUBECONFIG with the ServiceAccount's token, in place of a mount."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_process_node.downward import PodFacts
from graft_process_node.kube.api_client import ApiClient
from graft_process_node.kube.kubeconfig import kubeconfig
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
    credentials = {"tokenFile": str(volumes[volume] / "token")}
    config = kubeconfig(client.server, client.certificate_authority, credentials, facts.namespace)
    path = directory / "kubeconfig"
    temporary = directory / f"kubeconfig.{container['name']}"
    temporary.write_text(json.dumps(config, indent=1))
    temporary.replace(path)
    return path
