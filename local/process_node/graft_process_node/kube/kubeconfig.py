"""The form of a kubeconfig."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from typing import Any

_NAME = "graft-local"


def kubeconfig(
    server: str, certificate_authority: bytes, credentials: Mapping[str, str], namespace: str = "default"
) -> dict[str, Any]:
    """A kubeconfig with one context.

    Args:
        credentials: the fields of its `user`.
        namespace: where requests go that name none.
    """
    cluster = {"server": server, "certificate-authority-data": base64.b64encode(certificate_authority).decode()}
    return {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": _NAME, "cluster": cluster}],
        "users": [{"name": _NAME, "user": dict(credentials)}],
        "contexts": [{"name": _NAME, "context": {"cluster": _NAME, "user": _NAME, "namespace": namespace}}],
        "current-context": _NAME,
    }
