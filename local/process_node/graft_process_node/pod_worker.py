"""One pod bound to this node, from its first container to its deletion."""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft_process_node.back_off import runs_again
from graft_process_node.container_runner import ContainerRunner, ContainerSetting
from graft_process_node.downward import PodFacts
from graft_process_node.kube.api_client import ApiClient, JsonObject
from graft_process_node.kube.event_recorder import EventRecorder
from graft_process_node.node_setting import NodeSetting
from graft_process_node.pod_addresses import PodAddresses
from graft_process_node.pod_checks import unenforced_policies
from graft_process_node.pod_fields import check_pod
from graft_process_node.pod_status import (
    ContainerRecord,
    PodView,
    Verdict,
    pod_status,
    seconds_left,
    timestamp,
)
from graft_process_node.preparation import container_directory, prepare_process
from graft_process_node.record_restore import restored_records
from graft_process_node.status_writer import StatusWriter, retried
from graft_process_node.volume_follower import VolumeFollower
from graft_process_node.volumes import PodVolumes


@dataclass(frozen=True)
class NodeTools:
    """What every pod of a node shares."""

    client: ApiClient
    setting: NodeSetting
    recorder: EventRecorder
    addresses: PodAddresses


class PodWorker:
    """Runs one pod.

    Args:
        pod: the object as it was when the worker was made; `update` brings later ones.
    """

    def __init__(self, tools: NodeTools, pod: JsonObject) -> None:
        self._tools = tools
        self.pod = pod
        self.uid: str = pod["metadata"]["uid"]
        now = timestamp(time.time())
        self.init_records = restored_records(pod, init=True, now=now)
        self.records = restored_records(pod, init=False, now=now)
        self.directory = tools.setting.pods / self.uid
        self._volumes = PodVolumes(tools.client, pod, self.directory / "volumes")
        self._follower = VolumeFollower(self._volumes, self._facts, self._event)
        self._runners: list[ContainerRunner] = []
        self._pod_ip = ""
        self._prepared = False
        self._verdict: Verdict | None = None
        self._started_at = time.time()
        self._writer = StatusWriter(tools.client, pod, self._status)
        self._deletion = asyncio.Event()
        self._gone = False
        self._ending = False
        self.update(pod)

    # --- told by the agent

    def update(self, pod: JsonObject) -> None:
        """Take in a newer version of the object."""
        before, self.pod = self.pod, pod
        metadata = pod["metadata"]
        if metadata.get("deletionTimestamp"):
            self._deletion.set()
            self._shorten()
        if before["metadata"].get("labels") != metadata.get("labels") or before["metadata"].get(
            "annotations"
        ) != metadata.get("annotations"):
            self._follower.changed()
        if pod["spec"].get("ephemeralContainers") and not before["spec"].get("ephemeralContainers"):
            self._event(True, "Unsupported", "spec.ephemeralContainers: not supported by this node; none is started")
        self._writer.changed()

    def gone(self) -> None:
        """The object is deleted: end everything now."""
        self._gone = True
        self._deletion.set()
        self._shorten()

    def object_changed(self, kind: str, name: str) -> None:
        """A ConfigMap or Secret of the pod's namespace changed."""
        self._follower.object_changed(kind, name)

    # --- the pod's life

    async def run(self) -> None:
        """Until the pod is deleted. Cancelling it kills the containers and leaves the object as it is."""
        writing = asyncio.create_task(self._writer.run(), name=f"status of {self._named}")
        life = asyncio.create_task(self._live(), name=f"life of {self._named}")
        deletion = asyncio.create_task(self._deletion.wait())
        try:
            await asyncio.wait({life, deletion}, return_when=asyncio.FIRST_COMPLETED)
            if life.done() and life.exception() is not None:
                self._fail("NodeAgentFault", f"the node agent failed: {life.exception()!r}")
            await self._deletion.wait()
            self._ending = True
            await self._stop_all(self._grace_seconds(), f"Stopping pod {self._named}")
        finally:
            for task in (life, deletion, writing):
                task.cancel()
            await asyncio.gather(life, deletion, writing, return_exceptions=True)
        if not self._gone:
            await self._finish()
        self._tools.addresses.release(self.uid)
        await asyncio.to_thread(shutil.rmtree, self.directory, True)

    async def _live(self) -> None:
        stored = self.pod.get("status") or {}
        if stored.get("phase") in ("Succeeded", "Failed"):
            self._writer.pause()  # an earlier agent has told all there is to tell
            return
        if self._deletion.is_set() or await self._refused():
            return
        self._pod_ip = self._tools.addresses.take(self.uid, stored.get("podIP"))
        self._writer.changed()
        work = asyncio.create_task(self._run_containers(), name=f"containers of {self._named}")
        try:
            await asyncio.wait({work}, timeout=seconds_left(self.pod, time.time()))
            if work.done():
                work.result()
                return
            self._ending = True
            await self._stop_all(self._spec_grace_seconds(), "Pod was active longer than its deadline")
            self._fail("DeadlineExceeded", "Pod was active on the node longer than the specified deadline")
        finally:
            work.cancel()
            await asyncio.gather(work, return_exceptions=True)

    async def _refused(self) -> bool:
        findings = check_pod(self.pod)
        if findings.refused:
            for refusal in findings.refused:
                self._event(True, "Unsupported", refusal)
            self.init_records, self.records = [], []  # none ever ran
            self._fail("Unsupported", "; ".join(findings.refused))
            return True
        if (self.pod.get("status") or {}).get("startTime"):
            return False  # told already, by an earlier agent
        policies = await unenforced_policies(self._tools.client, self.pod)
        unenforced = [*findings.unenforced, *policies]
        if unenforced:
            self._event(False, "Unenforced", f"accepted, but not enforced by this node: {', '.join(unenforced)}")
        return False

    async def _run_containers(self) -> None:
        await self._follower.fill()
        self._prepared = True
        self._writer.changed()
        following = asyncio.create_task(self._follower.follow(), name=f"volumes of {self._named}")
        try:
            await self._run_all()
        finally:
            following.cancel()
            await asyncio.gather(following, return_exceptions=True)

    async def _run_all(self) -> None:
        spec = self.pod["spec"]
        policy = spec.get("restartPolicy") or "Always"
        init_policy = "OnFailure" if policy == "Always" else policy
        for container, record in zip(spec.get("initContainers") or [], self.init_records, strict=True):
            await self._run_container(container, record, init_policy)
            record.ready = record.succeeded
            if record.failed:
                return
        async with asyncio.TaskGroup() as group:
            for container, record in zip(spec["containers"], self.records, strict=True):
                if "waiting" in record.state:
                    record.state = {"waiting": {"reason": "ContainerCreating"}}
                group.create_task(self._run_container(container, record, policy))

    async def _run_container(self, container: Mapping[str, Any], record: ContainerRecord, policy: str) -> None:
        if self._ending:
            return
        if "terminated" in record.state and not runs_again(policy, record.state["terminated"]["exitCode"]):
            return
        directory = container_directory(self.directory, container["name"])
        directory.mkdir(parents=True, exist_ok=True)
        setting = ContainerSetting(
            spec=container,
            restart_policy=policy,
            prepare=lambda: prepare_process(
                self._tools.client, container, self._facts(), self._volumes, self.directory
            ),
            changed=self._writer.changed,
            event=self._event,
            directory=directory,
            marker=f"{self._tools.setting.marker}{self.uid}:{container['name']}",
            pod_ip=self._pod_ip,
            grace_seconds=self._spec_grace_seconds(),
        )
        runner = ContainerRunner(setting, record)
        self._runners.append(runner)
        try:
            await runner.run()
        finally:
            self._runners.remove(runner)

    # --- the end

    async def _stop_all(self, grace_seconds: float, why: str) -> None:
        deadline = asyncio.get_running_loop().time() + grace_seconds
        await asyncio.gather(*(runner.stop(deadline, why) for runner in list(self._runners)))

    def _shorten(self) -> None:
        deadline = asyncio.get_running_loop().time() + (0.0 if self._gone else self._grace_seconds())
        for runner in self._runners:
            runner.kill_at(deadline)

    async def _finish(self) -> None:
        """Tell how the containers ended, then let the API server forget the pod."""
        self._prepared = False
        await self._writer.write_last(lambda: self._gone)
        path = f"/api/v1/namespaces/{self.pod['metadata']['namespace']}/pods/{self.pod['metadata']['name']}"
        options = {"gracePeriodSeconds": 0, "preconditions": {"uid": self.uid}}
        await retried(lambda: self._tools.client.delete(path, options), lambda: self._gone)

    def _fail(self, reason: str, message: str) -> None:
        self._verdict = Verdict(reason, message)
        self._writer.changed()

    # --- facts

    @property
    def _named(self) -> str:
        return f"{self.pod['metadata']['namespace']}/{self.pod['metadata']['name']}"

    def _facts(self) -> PodFacts:
        setting = self._tools.setting
        return PodFacts(self.pod, self._pod_ip, setting.address, setting.name, setting.capacity)

    def _spec_grace_seconds(self) -> float:
        seconds = self.pod["spec"].get("terminationGracePeriodSeconds")
        return 30.0 if seconds is None else float(seconds)

    def _grace_seconds(self) -> float:
        if self._gone:
            return 0.0
        seconds = self.pod["metadata"].get("deletionGracePeriodSeconds")
        return self._spec_grace_seconds() if seconds is None else float(seconds)

    def _event(self, warning: bool, reason: str, message: str) -> None:
        self._tools.recorder.report(self.pod, reason, message, warning=warning)

    def _status(self, now: float, written: JsonObject) -> JsonObject:
        view = PodView(
            pod=self.pod,
            init_containers=self.init_records,
            containers=self.records,
            host_ip=self._tools.setting.address,
            pod_ip=self._pod_ip,
            started_at=self._started_at,
            prepared=self._prepared,
            ending=self._ending,
            verdict=self._verdict,
            written=written,
        )
        return pod_status(view, now)
