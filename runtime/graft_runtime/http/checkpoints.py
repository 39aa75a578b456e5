"""Checkpoints for the other pods of the pool: those that this pod needs itself, from its cache."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

from fastapi import APIRouter, Response
from fastapi.responses import FileResponse
from starlette.types import Receive, Scope, Send

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.http.faults import fault_response
from graft_runtime.pod.pod import Pod
from graft_runtime.store.cache import Cached
from graft_runtime.store.peers import PEER_PACE

logger = logging.getLogger(__name__)

FILES_AT_ONCE = 16
"""Files that are being sent."""


class _Sending:
    """Counts the files that are being sent."""

    def __init__(self) -> None:
        self.files = 0


class _BoundedFile(FileResponse):
    """Sends a file, or the part of it that was asked for, and breaks off for whoever takes longer than a pod may."""

    def __init__(self, path: Path, size: int, sending: _Sending) -> None:
        super().__init__(path, media_type="application/octet-stream")
        self._seconds, self._sending = PEER_PACE.seconds_for(size), sending

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self._sending.files += 1
        try:
            async with asyncio.timeout(self._seconds):
                await super().__call__(scope, receive, send)
        except TimeoutError:
            logger.info("%s was not read within %.0f s", self.path, self._seconds)
        finally:
            self._sending.files -= 1


def checkpoints_router(pod: Pod) -> APIRouter:
    """Return the routes by which other pods read what this one has."""
    router, sending = APIRouter(prefix="/checkpoints/{digest}"), _Sending()

    @router.get("")
    async def get_files(digest: str) -> Response:
        if _needed(pod, digest) is None or (files := pod.cache.files(digest)) is None:
            return _not_here(digest)
        return Response(files.canonical_json(), media_type="application/json")

    @router.get("/{name:path}")
    async def get_file(digest: str, name: str) -> Response:
        cached, files = _needed(pod, digest), pod.cache.files(digest)
        file = next((file for file in files.files if file.path == name), None) if files is not None else None
        if cached is None or file is None:
            return _not_here(f"{digest}/{name}")
        if sending.files >= FILES_AT_ONCE:
            raise GraftError(ErrorCode.OVERLOADED, f"{sending.files} files are being sent already", hint="try again")
        return _BoundedFile(cached.directory / name, file.size, sending)

    return router


def _needed(pod: Pod, digest: str) -> Cached | None:
    """Return a checkpoint that this pod has, and needs itself."""
    return pod.cache.find(digest) if digest in pod.digests_in_use() else None


def _not_here(what: str) -> Response:
    error = GraftError(ErrorCode.NOT_FOUND, f"this pod has no {what}", hint="ask another pod, or the source")
    answer = fault_response(error)
    answer.status_code = 404  # the code's own status is for requests of a model
    return answer
