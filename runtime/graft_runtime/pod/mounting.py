"""Which versions of adapters are fetched and mounted: the plan of `catalogue`, carried out. One event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from graft_runtime.contract.adapter_set import AdapterEntry
from graft_runtime.errors import GraftError
from graft_runtime.messages import BaseLoaded, Command, Dropped, Mount, Mounted, MountFailed, Unmount, Unmounted
from graft_runtime.pod.adapters import AdapterEvent
from graft_runtime.pod.aliases import Alias
from graft_runtime.pod.capabilities import adapter_fault
from graft_runtime.pod.catalogue import Artifact, Residence, Step, check_places, no_bytes, no_place, plan_mounts
from graft_runtime.pod.preparations import Preparations

logger = logging.getLogger(__name__)

RETRY_MOUNT_SECONDS = 30.0


class Mounting:
    """The versions of one pod, by digest.

    Args:
        preparations: bring them to where they can be mounted.
        send: hands a command to the engine.
        limit: how many the engine can hold.
    """

    def __init__(self, preparations: Preparations, send: Callable[[Command], None], limit: int) -> None:
        self._preparations, self._send, self._limit = preparations, send, limit
        self.touched: Callable[[Artifact], None] = lambda artifact: None
        """Called with a version whenever something about it has changed, or it is gone."""
        self._artifacts: dict[str, Artifact] = {}
        self._turns = 0
        self._base: BaseLoaded | None = None
        """None before it serves."""
        self._advancing = False
        self.short = False
        """Somebody waits for a place."""
        self.digests: frozenset[str] = frozenset()
        """All that the cache must keep. Read by other threads."""

    def get(self, digest: str | None) -> Artifact | None:
        """Return a version, if there is one of this digest."""
        return self._artifacts.get(digest or "")

    def base_loaded(self, loaded: BaseLoaded) -> None:
        """Begin to mount what the engine of this base is capable of."""
        self._base = loaded
        for artifact in self._artifacts.values():
            self._check(artifact)
            self.touched(artifact)
        self.advance()

    def _check(self, artifact: Artifact) -> None:
        """Refuse what the engine can't compute with, before it reads a weight of it."""
        if self._base is not None:
            artifact.engine = self._base.capabilities
            if artifact.facts is not None and artifact.fault is None:
                artifact.fault = adapter_fault(artifact.name, artifact.facts, artifact.engine)

    def keep(self, aliases: Mapping[str, Sequence[Alias]]) -> None:
        """Bring the versions in line with what names need: by digest, these names."""
        for digest, needing in aliases.items():
            sources = [alias.versions[digest].exact_source for alias in needing]
            artifact = self._artifacts.get(digest)
            if artifact is None or (artifact.cached is None and artifact.source not in sources):
                artifact = self._artifacts.setdefault(digest, Artifact(digest, sources[0], needing[0].entry.name))
                self._preparations.start(artifact, sources[0], self._prepared)
            artifact.wanted = True
        for digest, needing in aliases.items():
            self._pin(self._artifacts[digest], [alias.entry for alias in needing if alias.entry.pinned])
        for artifact in [artifact for digest, artifact in self._artifacts.items() if digest not in aliases]:
            self._let_go(artifact)
        self.digests = frozenset(self._artifacts)
        self.advance()

    def _pin(self, artifact: Artifact, pinned: Sequence[AdapterEntry]) -> None:
        """Pin the version that is to answer under one of these entries' names."""
        pinning = [entry for entry in pinned if entry.answering_digest == artifact.digest]
        artifact.pinned = bool(pinning)
        followed = bool(pinning) and all(entry.digest != artifact.digest for entry in pinning)
        artifact.successor = self.get(pinning[0].digest) if followed else None

    def forgive(self) -> None:
        """Try again what failed for reasons that may have passed."""
        for artifact in self._artifacts.values():
            if artifact.may_mount_again:
                artifact.fault = None

    def check_places(self, group: Iterable[Artifact]) -> None:
        """Check that versions can be mounted at the same time. Raises GraftError: NotComposable."""
        check_places({artifact.digest: artifact for artifact in group}, self._artifacts.values(), self._limit)

    def advance(self) -> None:
        """Mount and unmount what is to be, once for all that happens at the same time."""
        if self._base is not None and not self._advancing:
            self._advancing = True
            asyncio.get_running_loop().call_soon(self._mount_next)

    def on_event(self, event: AdapterEvent) -> Artifact | None:
        """Take what the engine says. Return the version that has moved, if one has."""
        if isinstance(event, Dropped):
            for digest in event.digests:
                if (artifact := self._artifacts.get(digest)) is not None:
                    artifact.in_host = False
            return None
        if (artifact := self._artifacts.get(event.digest)) is not None:
            self._move(artifact, event)
        return artifact

    def _move(self, artifact: Artifact, event: Mounted | MountFailed | Unmounted) -> None:
        match event:
            case Mounted() if artifact.residence is not Residence.UNMOUNTING:
                self._mounted(artifact, event)
            case MountFailed():
                artifact.device_bytes = event.bytes or artifact.device_bytes
                self._mount_failed(artifact, event.fault.error())
            case Unmounted() if artifact.residence is Residence.UNMOUNTING:
                artifact.residence, artifact.in_host = Residence.ABSENT, event.tier == "host"

    def _mounted(self, artifact: Artifact, event: Mounted) -> None:
        assert self._base is not None
        artifact.mounted(event, self._base.vocabulary_size)
        if artifact.fault is not None:
            logger.warning("%s", artifact.fault)
            self._send(Unmount(artifact.digest))

    def _mount_failed(self, artifact: Artifact, error: GraftError) -> None:
        logger.warning("%s", error)
        artifact.residence, artifact.fault = Residence.ABSENT, error
        if error.code.retried:
            asyncio.get_running_loop().call_later(RETRY_MOUNT_SECONDS, self._mount_again, artifact)

    def _mount_again(self, artifact: Artifact) -> None:
        if artifact.may_mount_again:
            artifact.fault = None
            self._prepared(artifact)

    def _let_go(self, artifact: Artifact) -> None:
        artifact.wanted, artifact.pinned = False, False
        if artifact.residence is Residence.ABSENT and not artifact.users:
            del self._artifacts[artifact.digest]
            if artifact.in_host:
                self._send(Unmount(artifact.digest))
            self._preparations.stop(artifact.digest)
            self.touched(artifact)

    def _prepared(self, artifact: Artifact) -> None:
        self._check(artifact)
        self.touched(artifact)
        self.advance()

    def _mount_next(self) -> None:
        self._advancing = False
        now = asyncio.get_running_loop().time()
        plan = plan_mounts(self._artifacts.values(), self._limit, now, self._room)
        self.short = plan.short
        for step in plan.steps:
            artifact = self._artifacts[step.digest]
            self._take(step, artifact)
            self.touched(artifact)

    @property
    def _room(self) -> int | None:
        return self._base.capabilities.device_bytes if self._base is not None else None

    def _take(self, step: Step, artifact: Artifact) -> None:
        match step.action:
            case "mount":
                assert artifact.cached is not None
                self._turns += 1
                artifact.residence, artifact.turn = Residence.MOUNTING, self._turns
                self._send(Mount(artifact.digest, str(artifact.cached.directory), artifact.name))
            case "unmount":
                assert self._base is not None, "it was mounted"
                artifact.residence = Residence.UNMOUNTING
                artifact.in_host = artifact.wanted and "host" in self._base.capabilities.tiers
                self._send(Unmount(artifact.digest, keep=artifact.wanted))
            case "yield" | "stay":
                artifact.yielding = step.action == "yield"
            case "refuse":
                artifact.fault = no_place(artifact.name, self._limit)
            case "too large":
                artifact.fault = no_bytes(artifact.name, artifact.size, self._room or 0)
