"""The Node object: registered, and kept Ready by its status and its Lease."""

from __future__ import annotations

import asyncio
import logging
import platform
import time
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Any

from graft_process_node.kube.api_client import MERGE, UNREACHABLE, ApiClient, ApiError
from graft_process_node.node_setting import NodeSetting
from graft_process_node.pod_status import timestamp

_log = logging.getLogger(__name__)
_HEARTBEAT_SECONDS = 10.0
_RETRY_SECONDS = 0.2
_LEASE_SECONDS = 40
_LEASES = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases"
_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


class NodeRegistration:
    """Registers the node and sends its heartbeats.

    Args:
        port: where the kubelet API listens.
    """

    def __init__(self, client: ApiClient, setting: NodeSetting, port: int) -> None:
        self._client = client
        self._setting = setting
        self._port = port
        self._ready_since = time.time()

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            try:
                await self._beat()
                await asyncio.sleep(_HEARTBEAT_SECONDS)
            except (ApiError, *UNREACHABLE) as error:
                _log.info("no heartbeat: %r", error)
                await asyncio.sleep(_RETRY_SECONDS)

    async def _beat(self) -> None:
        path = f"/api/v1/nodes/{self._setting.name}"
        status = {"status": node_status(self._setting, self._port, self._ready_since, time.time())}
        stored = await self._client.find(path)
        if stored is None:
            stored = await self._client.create("/api/v1/nodes", {**self._node(), **status})
        else:
            await self._client.patch(f"{path}/status", status)
        await self._renew_lease(stored["metadata"]["uid"])

    async def _renew_lease(self, node_uid: str) -> None:
        name = self._setting.name
        renewed = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        spec = {"holderIdentity": name, "leaseDurationSeconds": _LEASE_SECONDS, "renewTime": renewed}
        try:
            await self._client.patch(f"{_LEASES}/{name}", {"spec": spec}, content_type=MERGE)
        except ApiError as error:
            if error.status != 404:
                raise
            owner = {"apiVersion": "v1", "kind": "Node", "name": name, "uid": node_uid}
            lease = {"metadata": {"name": name, "ownerReferences": [owner]}, "spec": spec}
            await self._client.create(_LEASES, lease)

    def _node(self) -> dict[str, Any]:
        labels = {
            "kubernetes.io/hostname": self._setting.name,
            "kubernetes.io/os": "linux",
            "kubernetes.io/arch": _ARCHITECTURES.get(platform.machine(), platform.machine()),
        }
        return {"metadata": {"name": self._setting.name, "labels": labels}}


def node_status(setting: NodeSetting, port: int, ready_since: float, now: float) -> Mapping[str, Any]:
    """The status of the node, in seconds since the epoch; conditions are merged by type."""
    conditions = [("Ready", True, "KubeletReady", "the process node runs")]
    conditions += [(f"{kind}Pressure", False, "NotWatched", "") for kind in ("Memory", "Disk", "PID")]
    return {
        # No Hostname here: the API server would prefer it, and it has no address.
        "addresses": [{"type": "InternalIP", "address": setting.address}],
        "daemonEndpoints": {"kubeletEndpoint": {"Port": port}},
        "capacity": dict(setting.capacity),
        "allocatable": dict(setting.capacity),
        "nodeInfo": {
            "architecture": _ARCHITECTURES.get(platform.machine(), platform.machine()),
            "operatingSystem": "linux",
            "kernelVersion": platform.release(),
            "osImage": "process node",
            "containerRuntimeVersion": "process://1",
            "kubeletVersion": "v1.34.0-process-node",
            "kubeProxyVersion": "",
            "machineID": "",
            "systemUUID": "",
            "bootID": "",
        },
        "conditions": [
            {
                "type": kind,
                "status": "True" if holds else "False",
                "reason": reason,
                "message": message,
                "lastHeartbeatTime": timestamp(now),
                "lastTransitionTime": timestamp(ready_since),
            }
            for kind, holds, reason, message in conditions
        ],
    }
