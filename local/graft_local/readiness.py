"""Waiting until a cluster can be used, as seen from outside: through its API."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

from graft_local.certificates import certificates_of
from graft_local.control_plane import NODE_NAME, ask_api_server, listens
from graft_local.errors import LocalClusterError
from graft_local.http_client import FAULTS
from graft_local.network import ClusterNetwork
from graft_local.supervisor import log_file, pid_file

_POLL = 0.05


class Readiness:
    """What the cluster in the directory `state` still waits for; with `node`, for that too."""

    def __init__(self, state: Path, *, node: bool) -> None:
        self._state = state
        self._node = node

    def wait(self, timeout: float, given_up: Callable[[], bool], tell: Callable[[str], None]) -> None:
        """Wait up to `timeout` seconds, or until `given_up`; `tell` hears what is waited for.

        Raises:
            LocalClusterError: it took too long, or was given up; the ends of the logs are told.
        """
        deadline = time.monotonic() + timeout
        while (missing := self._missing()) is not None:
            tell(f"waiting for {missing}")
            if given_up():
                why = tail(log_file(self._state, "supervisor"))
                raise LocalClusterError(f"the local cluster in `{self._state}` did not start:\n{why}")
            if time.monotonic() > deadline:
                what = f"after {timeout:.0f} s there is still no {missing}"
                raise LocalClusterError(f"{what}; the end of {self._state}/logs:\n{self._logs()}")
            time.sleep(_POLL)

    def _missing(self) -> str | None:
        if not pid_file(self._state, "kube-apiserver").exists():
            return "API server"
        try:
            if self._get("/readyz") is None:
                return "API server that is ready"
            if self._get("/api/v1/namespaces/default/serviceaccounts/default") is None:
                return "default service account"
            if self._node and not self._node_is_ready():
                return "node that is Ready"
        except FAULTS:
            return "API server that answers"
        return None

    def _node_is_ready(self) -> bool:
        body = self._get(f"/api/v1/nodes/{NODE_NAME}")
        if body is None or not pid_file(self._state, "node").exists():
            return False
        status = json.loads(body)["status"]
        ready = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ()))
        # The object may be from an earlier run: ask the agent itself.
        port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
        addresses = [a["address"] for a in status.get("addresses", ()) if a["type"] == "InternalIP"]
        return ready and port is not None and any(listens(f"https://{address}:{port}") for address in addresses)

    def _get(self, path: str) -> bytes | None:
        return ask_api_server(path, ClusterNetwork.read(self._state), certificates_of(self._state))

    def _logs(self) -> str:
        return "\n".join(f"{path.name}:\n{tail(path)}" for path in sorted((self._state / "logs").glob("*.log")))


def tail(path: Path, lines: int = 8) -> str:
    """The last lines of a log, indented."""
    return "\n".join(f"  {line[:300]}" for line in path.read_text(errors="replace").splitlines()[-lines:])
