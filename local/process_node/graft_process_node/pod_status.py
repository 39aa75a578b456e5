"""The status of a pod as a kubelet would report it. Pure: the time is given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

JsonObject = dict[str, Any]


def timestamp(seconds: float) -> str:
    """A moment, in seconds since the epoch, as the Kubernetes API writes it."""
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def waiting(reason: str, message: str = "") -> JsonObject:
    """The state of a container that does not run yet, or not now."""
    return {"waiting": {"reason": reason, **({"message": message} if message else {})}}


def running(started_at: float) -> JsonObject:
    """The state of a container that runs since `started_at`, in seconds since the epoch."""
    return {"running": {"startedAt": timestamp(started_at)}}


def terminated(
    exit_code: int,
    reason: str,
    *,
    started_at: float,
    finished_at: float,
    signal_number: int = 0,
    message: str = "",
    container_id: str = "",
) -> JsonObject:
    """The state of a container that ended."""
    ended: JsonObject = {
        "exitCode": exit_code,
        "reason": reason,
        "startedAt": timestamp(started_at),
        "finishedAt": timestamp(finished_at),
    }
    optional = {"signal": signal_number, "message": message, "containerID": container_id}
    return {"terminated": {**ended, **{name: value for name, value in optional.items() if value}}}


@dataclass
class ContainerRecord:
    """What is known of one container of a pod; its states are in the API's shape."""

    name: str
    image: str
    state: JsonObject = field(default_factory=lambda: waiting("PodInitializing"))
    last_state: JsonObject = field(default_factory=dict)
    restart_count: int = 0
    started: bool = False
    ready: bool = False
    container_id: str = ""

    def to_status(self) -> JsonObject:
        """Its entry in `containerStatuses`."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "state": self.state,
            "lastState": self.last_state,
            "restartCount": self.restart_count,
            "started": self.started,
            "ready": self.ready,
            **({"containerID": self.container_id} if self.container_id else {}),
        }

    @property
    def succeeded(self) -> bool:
        return "terminated" in self.state and self.state["terminated"]["exitCode"] == 0

    @property
    def failed(self) -> bool:
        return "terminated" in self.state and self.state["terminated"]["exitCode"] != 0


@dataclass(frozen=True)
class Verdict:
    """Why the node ended a pod: it is Failed, whatever its containers say."""

    reason: str
    message: str


@dataclass(frozen=True)
class PodView:
    """All that a pod's status is made from.

    Args:
        pod: the object; its status holds the conditions that others own and the times of past transitions.
        init_containers, containers: in the order of the spec.
        prepared: whether the pod has its address and its volumes.
        ending: whether it is being ended for good: what has ended does not run again.
        verdict: set when the node has ended it.
        written: the status that was written last, which may be newer than the one in `pod`.
    """

    pod: Mapping[str, Any]
    init_containers: Sequence[ContainerRecord]
    containers: Sequence[ContainerRecord]
    host_ip: str
    pod_ip: str
    started_at: float
    prepared: bool
    ending: bool = False
    verdict: Verdict | None = None
    written: Mapping[str, Any] = field(default_factory=dict)


def pod_status(view: PodView, now: float) -> JsonObject:
    """The pod's status, to be merged into the stored one (strategic merge: conditions by type)."""
    phase = pod_phase(view)
    addresses = {"podIP": view.pod_ip, "podIPs": [{"ip": view.pod_ip}]} if view.pod_ip else {}
    return {
        "phase": phase,
        "observedGeneration": view.pod["metadata"].get("generation"),
        "startTime": (view.pod.get("status") or {}).get("startTime") or timestamp(view.started_at),
        "hostIP": view.host_ip,
        "hostIPs": [{"ip": view.host_ip}],
        **addresses,
        "reason": view.verdict.reason if view.verdict else None,
        "message": view.verdict.message if view.verdict else None,
        "conditions": _conditions(view, phase, now),
        "initContainerStatuses": [record.to_status() for record in view.init_containers],
        "containerStatuses": [record.to_status() for record in view.containers],
    }


def pod_phase(view: PodView) -> str:
    """`Pending`, `Running`, `Succeeded` or `Failed`, by a kubelet's rules."""
    policy = view.pod["spec"].get("restartPolicy") or "Always"
    if view.verdict is not None or (policy == "Never" and any(record.failed for record in view.init_containers)):
        return "Failed"
    if not all(record.succeeded for record in view.init_containers) or _never_ran(view.containers):
        return "Pending"
    if any("running" in record.state for record in view.containers):
        return "Running"
    if all(record.succeeded for record in view.containers) and (view.ending or policy != "Always"):
        return "Succeeded"
    return "Failed" if view.ending or policy == "Never" else "Running"


def seconds_left(pod: Mapping[str, Any], now: float) -> float | None:
    """What is left of the pod's `activeDeadlineSeconds`, which count from its start; None without a deadline."""
    seconds = pod["spec"].get("activeDeadlineSeconds")
    if seconds is None:
        return None
    start = (pod.get("status") or {}).get("startTime")
    begun = datetime.fromisoformat(start).timestamp() if start else now
    return max(0.0, begun + float(seconds) - now)


def _never_ran(containers: Iterable[ContainerRecord]) -> bool:
    return any("waiting" in record.state and "terminated" not in record.last_state for record in containers)


def _conditions(view: PodView, phase: str, now: float) -> list[JsonObject]:
    ended = phase in ("Succeeded", "Failed")
    end_reason = "PodCompleted" if phase == "Succeeded" else "PodFailed"
    not_initialized = [record.name for record in view.init_containers if not record.succeeded]
    unready = [record.name for record in view.containers if not record.ready]
    if ended:
        ready: tuple[bool, str, str] = (False, end_reason, "")
    elif unready:
        ready = (False, "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]")
    else:
        ready = (True, "", "")
    initialized = (
        (False, "ContainersNotInitialized", f"containers with incomplete status: [{' '.join(not_initialized)}]")
        if not_initialized
        else (True, "PodCompleted" if phase == "Succeeded" else "", "")
    )
    return [
        _condition(view, "PodReadyToStartContainers", (view.prepared and not ended, "", ""), now),
        _condition(view, "Initialized", initialized, now),
        _condition(view, "Ready", _gated(view.pod, ready), now),
        _condition(view, "ContainersReady", ready, now),
        _condition(view, "PodScheduled", (True, "", ""), now),
    ]


def _gated(pod: Mapping[str, Any], ready: tuple[bool, str, str]) -> tuple[bool, str, str]:
    """A pod is ready when its containers are and every readiness gate, which someone else sets, is open."""
    if not ready[0]:
        return ready
    stored = {one["type"]: one["status"] for one in (pod.get("status") or {}).get("conditions") or []}
    for gate in pod["spec"].get("readinessGates") or []:
        if stored.get(gate["conditionType"]) != "True":
            message = f'corresponding condition of pod readiness gate "{gate["conditionType"]}" is not true'
            return False, "ReadinessGatesNotReady", message
    return ready


def _condition(view: PodView, kind: str, found: tuple[bool, str, str], now: float) -> JsonObject:
    holds, reason, message = found
    status = "True" if holds else "False"
    known = [*(view.written.get("conditions") or []), *((view.pod.get("status") or {}).get("conditions") or [])]
    before = next((one for one in known if one["type"] == kind), None)
    since = before.get("lastTransitionTime") if before and before["status"] == status else None
    return {
        "type": kind,
        "status": status,
        "reason": reason or None,
        "message": message or None,
        "lastTransitionTime": since or timestamp(now),
    }
