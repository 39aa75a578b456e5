"""The node agent: runs the pods that are bound to its node as processes of this machine."""

from __future__ import annotations

import asyncio
import logging
import shutil
from collections.abc import Coroutine
from pathlib import Path
from typing import Any

from graft_process_node.claims import ClaimBinder
from graft_process_node.container_process import MARKER
from graft_process_node.kube.api_client import ApiClient, JsonObject
from graft_process_node.kube.event_recorder import EventRecorder
from graft_process_node.kube.reflector import Reflector
from graft_process_node.kubelet_server import KubeletServer, LoggedContainer
from graft_process_node.node_registration import NodeRegistration
from graft_process_node.node_setting import NodeSetting
from graft_process_node.pod_addresses import PodAddresses
from graft_process_node.pod_worker import NodeTools, PodWorker
from graft_process_node.sweep import sweep

_log = logging.getLogger(__name__)


async def run(kubeconfig: Path, setting: NodeSetting) -> None:
    """Be the node that `setting` describes, until cancelled; no process of it is left then.

    Args:
        kubeconfig: of an identity that may do what a kubelet does, create and delete PersistentVolumes, and read
            NetworkPolicies; its CA is also the one whose client certificates may read logs.

    Raises:
        OSError: the node's port is taken.
    """
    setting.pods.mkdir(mode=0o700, parents=True, exist_ok=True)  # Secrets lie below
    leftover = await asyncio.to_thread(sweep, MARKER, setting.marker)
    if leftover:
        _log.warning("ended %d processes that an earlier agent left", leftover)
    async with ApiClient(kubeconfig) as client:
        agent = _Agent(client, setting)
        server = KubeletServer(setting.address, setting.port, client.certificate_authority, agent.find_container)
        async with server.serving() as port:
            await agent.run(port)


class _Agent:
    def __init__(self, client: ApiClient, setting: NodeSetting) -> None:
        self._client = client
        self._setting = setting
        self._recorder = EventRecorder(client, "process-node", setting.name)
        self._tools = NodeTools(client, setting, self._recorder, PodAddresses(setting.pod_network))
        self._workers: dict[str, PodWorker] = {}
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._finished: set[str] = set()
        self._pods = Reflector(
            client, "/api/v1/pods", self._pod_changed, parameters={"fieldSelector": f"spec.nodeName={setting.name}"}
        )

    async def run(self, port: int) -> None:
        duties: list[Coroutine[Any, Any, None]] = [
            NodeRegistration(self._client, self._setting, port).run(),
            self._recorder.run(),
            ClaimBinder(self._client, self._setting.name, self._setting.state).run(),
            *(self._follow(kind) for kind in ("configmaps", "secrets")),
            self._pods.run(),
            self._remove_leftovers(),
        ]
        try:
            async with asyncio.TaskGroup() as group:
                for duty in duties:
                    group.create_task(duty)
        finally:
            for task in self._tasks.values():
                task.cancel()
            await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    def find_container(self, namespace: str, pod_name: str, container_name: str) -> LoggedContainer | None:
        """A container of a pod of this node."""
        for worker in self._workers.values():
            metadata = worker.pod["metadata"]
            if (metadata["namespace"], metadata["name"]) == (namespace, pod_name):
                for record in (*worker.init_records, *worker.records):
                    if record.name == container_name:
                        return LoggedContainer(record, worker.directory / "containers" / container_name)
        return None

    async def _follow(self, kind: str) -> None:
        """Tell the pods of ConfigMaps or Secrets that change; the contents are read when a pod uses them."""

        def changed(before: JsonObject | None, after: JsonObject | None) -> None:
            metadata = (after or before or {})["metadata"]
            for worker in self._workers.values():
                if worker.pod["metadata"]["namespace"] == metadata["namespace"]:
                    worker.object_changed(kind, metadata["name"])

        await Reflector(self._client, f"/api/v1/{kind}", changed, metadata_only=True).run()

    async def _remove_leftovers(self) -> None:
        """Directories of pods that were deleted while no agent ran."""
        await self._pods.listed.wait()
        for directory in self._setting.pods.iterdir():
            if directory.name not in self._workers:
                await asyncio.to_thread(shutil.rmtree, directory, True)

    def _pod_changed(self, before: JsonObject | None, pod: JsonObject | None) -> None:
        if pod is None:
            uid = (before or {})["metadata"]["uid"]
            self._finished.discard(uid)
            worker = self._workers.get(uid)
            if worker is not None:
                worker.gone()
            return
        uid = pod["metadata"]["uid"]
        if uid in self._finished:  # ended by us, kept by someone's finalizer
            return
        if uid in self._workers:
            self._workers[uid].update(pod)
            return
        worker = self._workers[uid] = PodWorker(self._tools, pod)
        task = self._tasks[uid] = asyncio.create_task(worker.run(), name=f"pod {uid}")
        task.add_done_callback(lambda done: self._worker_ended(uid, done))

    def _worker_ended(self, uid: str, task: asyncio.Task[None]) -> None:
        del self._workers[uid], self._tasks[uid]
        if uid in self._pods.objects:
            self._finished.add(uid)
        if not task.cancelled() and task.exception() is not None:
            _log.error("pod %s: its worker failed", uid, exc_info=task.exception())
