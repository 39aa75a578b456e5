"""Whether a pod takes requests."""

from __future__ import annotations

import asyncio

from graft_runtime.pod.adapters import Adapters
from graft_runtime.pod.base_life import BaseLife
from graft_runtime.pod.sets import AdapterSets


class Readiness:
    """The readiness of one pod.

    Args:
        startup_seconds: how long a base that serves waits for the adapters of the set; no such end has the wait for
            those that the set requires.
    """

    def __init__(self, base: BaseLife, adapters: Adapters, sets: AdapterSets, startup_seconds: float) -> None:
        self._base, self._adapters, self._sets = base, adapters, sets
        self._startup_seconds = startup_seconds
        self._was_complete = False
        self.leaving = False
        """SIGTERM came: unready for good, but still serving."""

    @property
    def ready(self) -> bool:
        """Tell whether this pod takes requests. Once it did, only its end or that of its base takes that away."""
        self._was_complete = self._was_complete or self._is_complete()
        return self._was_complete and self._base.serving_since is not None and not self.leaving

    def _is_complete(self) -> bool:
        since = self._base.serving_since
        if since is None:
            return False
        if self._sets.current is None:
            return self._is_late(since)
        waited_for = [entry for entry in self._sets.current.adapters if entry.inline or entry.required]
        late = self._is_late(since)
        return all(self._adapters.is_settled(entry) or (late and not entry.required) for entry in waited_for)

    def _is_late(self, since: float) -> bool:
        return asyncio.get_running_loop().time() - since >= self._startup_seconds
