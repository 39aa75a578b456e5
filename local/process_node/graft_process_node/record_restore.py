"""What an agent that starts anew knows of a pod's containers, from the status that the one before it wrote."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_process_node.pod_status import ContainerRecord, JsonObject, waiting


def restored_records(pod: Mapping[str, Any], *, init: bool, now: str) -> list[ContainerRecord]:
    """One record a container. What ran then is gone: it counts as ended by SIGKILL, and its next run as a restart.

    Args:
        now: the time, as the API writes it.
    """
    statuses_key, spec_key = (
        ("initContainerStatuses", "initContainers") if init else ("containerStatuses", "containers")
    )
    stored = {one["name"]: one for one in (pod.get("status") or {}).get(statuses_key) or []}
    has_init_containers = bool(pod["spec"].get("initContainers"))
    records = []
    for container in pod["spec"].get(spec_key) or []:
        record = ContainerRecord(container["name"], container.get("image") or "")
        if not has_init_containers:
            record.state = waiting("ContainerCreating")
        if container["name"] in stored:
            _restore(record, stored[container["name"]], now)
        records.append(record)
    return records


def _restore(record: ContainerRecord, status: Mapping[str, Any], now: str) -> None:
    record.restart_count = int(status.get("restartCount") or 0)
    record.container_id = status.get("containerID") or ""
    state: JsonObject = dict(status.get("state") or {})
    record.last_state = dict(status.get("lastState") or {})
    if "running" in state:
        record.state = {
            "terminated": {
                "exitCode": 137,
                "signal": 9,
                "reason": "Error",
                "message": "the node agent ended while the container ran",
                "startedAt": state["running"].get("startedAt") or now,
                "finishedAt": now,
            }
        }
    elif "terminated" in state:
        record.state = state
    elif "terminated" in record.last_state:  # it waited to be restarted
        record.state = record.last_state
