"""A pod's volumes over time: filled before its containers start, then brought up to date with every change."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable

from graft_process_node.downward import PodFacts
from graft_process_node.kube.api_client import UNREACHABLE, ApiError
from graft_process_node.volume_files import VolumeError
from graft_process_node.volumes import PodVolumes

_log = logging.getLogger(__name__)
_RETRY_FIRST = 0.2
_RETRY_LONGEST = 5.0
_RECHECK_SECONDS = 60.0
"""Tokens are renewed, and missed changes found, this often."""


class VolumeFollower:
    """Keeps the volumes of one pod.

    Args:
        facts: the pod as it is now.
        event: reports (warning, reason, message).
    """

    def __init__(
        self, volumes: PodVolumes, facts: Callable[[], PodFacts], event: Callable[[bool, str, str], None]
    ) -> None:
        self._volumes = volumes
        self._facts = facts
        self._event = event
        self._changed = asyncio.Event()

    def changed(self) -> None:
        """Something that the volumes show may have changed."""
        self._changed.set()

    def object_changed(self, kind: str, name: str) -> None:
        """A ConfigMap or Secret of the pod's namespace changed."""
        if (kind, name) in self._volumes.references:
            self._changed.set()

    async def fill(self) -> None:
        """Try, at each change and with growing waits, until every volume is there."""
        wait = _RETRY_FIRST
        while not await self._attempt():
            await self._wait_for_change(wait)
            wait = min(_RETRY_LONGEST, 2 * wait)

    async def follow(self) -> None:
        """Bring the volumes up to date until cancelled; what can't be is left as it was, as a kubelet does."""
        wait = _RECHECK_SECONDS
        while True:
            await self._wait_for_change(wait)
            wait = _RECHECK_SECONDS if await self._attempt() else _RETRY_LONGEST

    async def _attempt(self) -> bool:
        self._changed.clear()
        try:
            await self._volumes.fill(self._facts())
        except (VolumeError, ApiError) as error:
            self._event(True, "FailedMount", f"MountVolume.SetUp failed: {error}")
            return False
        except UNREACHABLE as error:
            _log.info("volumes: %r", error)
            return False
        return True

    async def _wait_for_change(self, seconds: float) -> None:
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self._changed.wait(), seconds)
