"""Why a pod does not run, in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from graft_runtime.errors import cut

_STUCK = frozenset(
    {"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull", "CreateContainerConfigError"}
)
"""Why a kubelet lets a container wait for a person: for its image, or for what its variables are read from."""
_CRASHED = "CrashLoopBackOff"
_OUT_OF_MEMORY = "OOMKilled"


def pod_trouble(pod: Mapping[str, Any]) -> str | None:
    """Say why a pod does not run: unschedulable, an image that can't be pulled, how its container ended."""
    status = pod.get("status") or {}
    scheduled = find_condition(status, "PodScheduled")
    if scheduled.get("status") == "False":
        return told(scheduled)
    if container := _waiting(status):
        waiting = container["state"]["waiting"]
        ended = (container.get("lastState") or {}).get("terminated")
        return cut(f"{_CRASHED}: {_ending(pod, container, ended)}") if _crashed(waiting) and ended else told(waiting)
    return told(status) or "Failed" if status.get("phase") == "Failed" else None


def is_stuck(pod: Mapping[str, Any]) -> bool:
    """Tell whether the trouble is in what the pod names, such as its image: somebody has to act."""
    container = _waiting(pod.get("status") or {})
    return bool(container) and container["state"]["waiting"]["reason"] in _STUCK


def find_condition(status: Mapping[str, Any], kind: str) -> Mapping[str, Any]:
    """Return a condition of a status; empty where it has none of this kind."""
    return next((condition for condition in status.get("conditions") or () if condition.get("type") == kind), {})


def told(what: Mapping[str, Any]) -> str:
    """Return the reason and the message of a condition or a state."""
    return cut(": ".join(part for part in (what.get("reason"), what.get("message")) if part))


def _crashed(waiting: Mapping[str, Any]) -> bool:
    return waiting.get("reason") == _CRASHED


def _waiting(status: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the status of the first container that waits, but for those that are just being made."""
    for container in (*(status.get("initContainerStatuses") or ()), *(status.get("containerStatuses") or ())):
        waiting = (container.get("state") or {}).get("waiting") or {}
        if waiting.get("reason") not in (None, "ContainerCreating", "PodInitializing"):
            return dict(container)
    return {}


def _ending(pod: Mapping[str, Any], container: Mapping[str, Any], ended: Mapping[str, Any]) -> str:
    """Say how a container ended: the kernel's reason with the limit, or its own last words."""
    name = container["name"]
    reason = ended.get("reason") or "Error"
    if reason == _OUT_OF_MEMORY:
        limit = _memory_limit(pod, name)
        return f"{reason}: `{name}` took more memory than " + (f"its limit, {limit}" if limit else "the node has")
    return _last_words(ended.get("message") or "") or f"{reason}: `{name}` ended with status {ended.get('exitCode')}"


def _memory_limit(pod: Mapping[str, Any], container: str) -> str | None:
    spec = pod.get("spec") or {}
    of_name = (each for each in (*(spec.get("initContainers") or ()), *(spec.get("containers") or ())))
    limits = next(((each.get("resources") or {}).get("limits") for each in of_name if each["name"] == container), None)
    return (limits or {}).get("memory")


def _last_words(log: str) -> str:
    """Return the last line of a log, and of a line of JSON its message: the kubelet hands over the log's end."""
    line = log.strip().rpartition("\n")[2]
    try:
        return " ".join(str(json.loads(line)["message"]).split())
    except (ValueError, TypeError, KeyError):
        return line
