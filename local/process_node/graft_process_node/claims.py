"""PersistentVolumes for this machine's claims: a directory for each."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graft_process_node.kube.api_client import UNREACHABLE, ApiClient, ApiError, JsonObject
from graft_process_node.kube.reflector import Reflector

_log = logging.getLogger(__name__)
_LABEL = "graft.dev/process-node"
_RETRY_SECONDS = 1.0


class ClaimBinder:
    """Makes a hostPath PersistentVolume for every pending claim; the PersistentVolume controller binds the two.

    The directory is STATE/claims/NAMESPACE/NAME and outlasts the claim, so that files can be put there before it.

    Args:
        node_name: volumes carry it as a label, and only such volumes are removed when their claims are gone.
        state: the state directory.
    """

    def __init__(self, client: ApiClient, node_name: str, state: Path) -> None:
        self._client = client
        self._node_name = node_name
        self._state = state
        self._queue: asyncio.Queue[tuple[JsonObject, bool]] = asyncio.Queue()
        self.claims = Reflector(client, "/api/v1/persistentvolumeclaims", self._claim_changed)
        self.volumes = Reflector(
            client,
            "/api/v1/persistentvolumes",
            self._volume_changed,
            parameters={"labelSelector": f"{_LABEL}={node_name}"},
        )

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self.claims.run())
            group.create_task(self.volumes.run())
            while True:
                subject, is_claim = await self._queue.get()
                try:
                    await (self._provide(subject) if is_claim else self._remove(subject))
                except (ApiError, *UNREACHABLE) as error:
                    _log.warning("volume for %s: %r", subject["metadata"]["name"], error)
                    asyncio.get_running_loop().call_later(_RETRY_SECONDS, self._queue.put_nowait, (subject, is_claim))

    def _claim_changed(self, _before: JsonObject | None, claim: JsonObject | None) -> None:
        if claim is not None and (claim.get("status") or {}).get("phase", "Pending") == "Pending":
            self._queue.put_nowait((claim, True))

    def _volume_changed(self, _before: JsonObject | None, volume: JsonObject | None) -> None:
        if volume is not None and (volume.get("status") or {}).get("phase") in ("Released", "Failed"):
            self._queue.put_nowait((volume, False))

    async def _provide(self, claim: JsonObject) -> None:
        if claim["spec"].get("volumeName") or claim["metadata"].get("deletionTimestamp"):
            return
        directory = self._state.absolute() / "claims" / claim["metadata"]["namespace"] / claim["metadata"]["name"]
        directory.mkdir(parents=True, exist_ok=True)
        try:
            await self._client.create("/api/v1/persistentvolumes", volume_for(claim, directory, self._node_name))
        except ApiError as error:
            if error.status != 409:  # made for an earlier version of the same claim
                raise

    async def _remove(self, volume: JsonObject) -> None:
        name, uid = volume["metadata"]["name"], volume["metadata"]["uid"]
        try:
            await self._client.delete(f"/api/v1/persistentvolumes/{name}", {"preconditions": {"uid": uid}})
        except ApiError as error:
            if error.status not in (404, 409):
                raise


def volume_for(claim: Mapping[str, Any], directory: Path, node_name: str) -> dict[str, Any]:
    """The PersistentVolume for `claim` alone, with its files in `directory`."""
    metadata, spec = claim["metadata"], claim["spec"]
    return {
        "metadata": {"name": f"local-{metadata['uid']}", "labels": {_LABEL: node_name}},
        "spec": {
            "capacity": {"storage": spec["resources"]["requests"]["storage"]},
            "accessModes": spec["accessModes"],
            "volumeMode": spec.get("volumeMode") or "Filesystem",
            "storageClassName": spec.get("storageClassName") or "",
            "persistentVolumeReclaimPolicy": "Retain",
            "hostPath": {"path": str(directory)},
            "claimRef": {
                "apiVersion": "v1",
                "kind": "PersistentVolumeClaim",
                "namespace": metadata["namespace"],
                "name": metadata["name"],
                "uid": metadata["uid"],
            },
        },
    }
