"""A pod's volumes on this machine, kept up to date."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any

from graft_process_node.atomic_directory import write_files
from graft_process_node.downward import PodFacts
from graft_process_node.kube.api_client import UNREACHABLE, ApiClient, ApiError
from graft_process_node.process_spec import Reference
from graft_process_node.volume_files import (
    PROJECTED_KINDS,
    VolumeError,
    volume_files,
    volume_references,
)

_RENEW_AT = 0.8
"""A token is renewed when this part of its life is over."""
_LONGEST_TOKEN_AGE = 24 * 3600.0


class PodVolumes:
    """The volumes of one pod.

    Args:
        directory: what belongs to the pod alone lies below it.
    """

    def __init__(self, client: ApiClient, pod: Mapping[str, Any], directory: Path) -> None:
        self._client = client
        self._namespace = pod["metadata"]["namespace"]
        self._volumes = list(pod["spec"].get("volumes") or [])
        self._directory = directory
        self._tokens: dict[tuple[str, int], tuple[bytes, float]] = {}
        self.places: dict[str, Path] = {}
        """Where each volume lies, by name, once `fill` has succeeded."""

    @property
    def references(self) -> set[Reference]:
        """The ConfigMaps and Secrets that the volumes follow."""
        return set().union(*(volume_references(volume) for volume in self._volumes))

    async def fill(self, facts: PodFacts) -> None:
        """Bring every volume up to date.

        Raises:
            VolumeError: something that a volume needs does not exist yet.
            ApiError, aiohttp.ClientError, TimeoutError, OSError: the API server, or the disk, refuses.
        """
        objects = await self.fetch(self.references)
        for volume in self._volumes:
            self.places[volume["name"]] = await self._fill(volume, facts, objects)

    async def fetch(self, references: set[Reference]) -> dict[Reference, Mapping[str, Any]]:
        """The ConfigMaps and Secrets that exist of these. Raises as the API client."""
        ordered = sorted(references)
        found = await asyncio.gather(
            *(self._client.find(f"/api/v1/namespaces/{self._namespace}/{kind}/{name}") for kind, name in ordered)
        )
        return {reference: stored for reference, stored in zip(ordered, found, strict=True) if stored is not None}

    async def _fill(
        self, volume: Mapping[str, Any], facts: PodFacts, objects: Mapping[Reference, Mapping[str, Any]]
    ) -> Path:
        place = self._directory / str(volume["name"])
        if any(volume.get(kind) is not None for kind in PROJECTED_KINDS):
            tokens = await self._projected_tokens(volume, facts)
            files = volume_files(volume, facts, objects, lambda source: tokens[_token_key(source)])
            await asyncio.to_thread(write_files, place, files)
            return place
        if volume.get("persistentVolumeClaim") is not None:
            return await self._claimed(volume["persistentVolumeClaim"]["claimName"])
        if volume.get("hostPath") is not None:
            return _host_path(volume["hostPath"])
        place.mkdir(parents=True, exist_ok=True)
        return place

    async def _claimed(self, claim_name: str) -> Path:
        claim = await self._client.find(f"/api/v1/namespaces/{self._namespace}/persistentvolumeclaims/{claim_name}")
        if claim is None:
            raise VolumeError(f"PersistentVolumeClaim {self._namespace}/{claim_name} not found")
        if (claim.get("status") or {}).get("phase") != "Bound":
            raise VolumeError(f"PersistentVolumeClaim {self._namespace}/{claim_name} is not bound yet")
        name = claim["spec"]["volumeName"]
        volume = await self._client.get(f"/api/v1/persistentvolumes/{name}")
        source = volume["spec"].get("hostPath") or volume["spec"].get("local")
        if source is None:
            raise VolumeError(f"PersistentVolume {name}: this node knows hostPath and local volumes only")
        return _host_path({"path": source["path"], "type": "DirectoryOrCreate"})

    async def _projected_tokens(self, volume: Mapping[str, Any], facts: PodFacts) -> dict[tuple[str, int], bytes]:
        sources = [
            source["serviceAccountToken"]
            for source in (volume.get("projected") or {}).get("sources") or []
            if source.get("serviceAccountToken")
        ]
        return {_token_key(source): await self._token(_token_key(source), facts) for source in sources}

    async def _token(self, key: tuple[str, int], facts: PodFacts) -> bytes:
        token, renew_at = self._tokens.get(key, (b"", 0.0))
        if time.time() < renew_at:
            return token
        audience, seconds = key
        account = facts.pod["spec"].get("serviceAccountName") or "default"
        bound = {"kind": "Pod", "apiVersion": "v1", "name": facts.name, "uid": facts.uid}
        request = {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "spec": {
                "audiences": [audience] if audience else [],
                "expirationSeconds": seconds,
                "boundObjectRef": bound,
            },
        }
        try:
            answer = await self._client.create(
                f"/api/v1/namespaces/{self._namespace}/serviceaccounts/{account}/token", request
            )
        except (ApiError, *UNREACHABLE):
            if token:  # the old one still holds for a while
                return token
            raise
        token = str(answer["status"]["token"]).encode()
        expires = datetime.fromisoformat(answer["status"]["expirationTimestamp"]).timestamp()
        life = min(_RENEW_AT * min(seconds, expires - time.time()), _LONGEST_TOKEN_AGE)
        self._tokens[key] = (token, time.time() + life)
        return token


def _token_key(source: Mapping[str, Any]) -> tuple[str, int]:
    return str(source.get("audience") or ""), int(source.get("expirationSeconds") or 3600)


def _host_path(source: Mapping[str, Any]) -> Path:
    place = Path(source["path"])
    kind = source.get("type") or ""
    if kind == "DirectoryOrCreate":
        place.mkdir(parents=True, exist_ok=True)
    elif kind == "FileOrCreate":
        place.parent.mkdir(parents=True, exist_ok=True)
        place.touch(exist_ok=True)
    if kind.startswith("Directory") and not place.is_dir():
        raise VolumeError(f"hostPath type check failed: {place} is not a directory")
    if kind.startswith("File") and not place.is_file():
        raise VolumeError(f"hostPath type check failed: {place} is not a file")
    return place
