"""Where the API server is and who we are."""

from __future__ import annotations

import os
from dataclasses import dataclass

from kubernetes.aio import config as client_config
from kubernetes.aio.client import Configuration


@dataclass(frozen=True)
class Access:
    """What the watches need of a configuration."""

    server: str
    ca_path: str | None
    token: str | None
    certificate_path: str | None
    private_key_path: str | None
    verify: bool

    @classmethod
    def of(cls, configuration: Configuration) -> Access:
        scheme_and_token = (configuration.api_key.get("BearerToken") or "").split(None, 1)
        return cls(
            server=configuration.host,
            ca_path=configuration.ssl_ca_cert,
            token=scheme_and_token[-1].strip() if scheme_and_token else None,
            certificate_path=configuration.cert_file,
            private_key_path=configuration.key_file,
            verify=configuration.verify_ssl,
        )


async def load_configuration() -> Configuration:
    """Read the pod's service account where there is one, else what KUBECONFIG names."""
    configuration = Configuration()
    if os.environ.get("KUBERNETES_SERVICE_HOST"):
        client_config.load_incluster_config(client_configuration=configuration)
    else:
        await client_config.load_kube_config(client_configuration=configuration, persist_config=False)
    return configuration
