"""Hot adapters whose engine is played by hand: every command is answered when the test says so."""

from __future__ import annotations

import asyncio
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet, AdapterVersion
from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.status import AdapterState
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import (
    BaseLoaded,
    Capabilities,
    Command,
    EngineFault,
    Mount,
    Mounted,
    MountFailed,
    Tier,
    Unmount,
    Unmounted,
)
from graft_runtime.pod.adapters import AskVersion, NamedAdapters
from graft_runtime.pod.hot import HotAdapters
from graft_runtime.pod.leases import Lease
from graft_runtime.pod.mounting import Mounting
from graft_runtime.pod.preparations import Preparations
from graft_runtime.store.cache import Cached

ENGINE = Capabilities(frozenset(DeltaKind), weights=True, adapters_per_request=4, tiers=("device", "host", "disk"))
LOADED = BaseLoaded("decoder", 64, 320, 1, "float32", Task.CAUSAL_LM, ENGINE)


class Files:
    """What the header checks find in every adapter here."""

    facts = AdapterFacts(method="LORA", rank=4, module_count=1, deltas=["LowRank"])


class Fetches:
    """Everything is in the cache already."""

    async def fetch_until_there(self, source: Source, kind: str, digest: str, name: str, failed: Any) -> Cached:
        return Cached(digest, Path("/nowhere"), 1)


class Holder:
    """Waits to be told that it can't go on."""

    def __init__(self) -> None:
        self.failed: asyncio.Future[None] = asyncio.get_running_loop().create_future()

    def fail(self, error: GraftError) -> None:
        self.failed.set_exception(error)


class Played:
    """A residency and the commands that it sent; `answer` plays the engine."""

    def __init__(self, limit: int = 2) -> None:
        self.sent: list[Command] = []
        fetches: Any = Fetches()
        mounting = Mounting(Preparations(fetches, self.highest_token, max_rank=8), self.sent.append, limit)
        self.residency = HotAdapters(mounting, drain_seconds=0.05, changed=lambda name: None)
        self.residency.answer_checks(self._asking)
        self.residency.base_loaded(LOADED)
        self._generation = 0
        self.entries: tuple[AdapterEntry, ...] = ()
        self.bad: Collection[str] = ()
        """Digests of what can't be mounted."""
        self.kept_in: Tier = "host"
        """Where the engine keeps what is unmounted."""
        self.tokenizers: dict[str, int] = {}
        """The highest token of those that adapters bring, by name."""
        self.mounted: dict[str, Any] = {}
        """What the engine tells of an adapter besides, by digest."""
        self.answers: dict[str, str | GraftError] = {}
        """To checks, by digest."""
        self.asked: list[str] = []
        """The digests of what was checked, in that order."""

    def _asking(self, checked: NamedAdapters) -> AskVersion:
        async def ask(name: str, check: AnswerCheck) -> str:
            (lease,) = await checked.acquire([name], 10)
            self.asked.append(lease.digest)
            lease.release()
            answer = self.answers.get(lease.digest, "")
            if isinstance(answer, GraftError):
                raise answer
            return answer

        return ask

    async def highest_token(self, cached: Cached, name: str) -> int | None:
        return self.tokenizers.get(name)

    async def apply(
        self,
        *,
        scales: Mapping[str, float] | None = None,
        serving: Mapping[str, str] | None = None,
        pinned: Collection[str] = (),
        checks: Mapping[str, AnswerCheck] | None = None,
        **digests: str | None,
    ) -> None:
        """Put a set in force: `name="x"` is the digest of x's, `serving` those that go on answering beside it."""
        self._generation += 1
        scales, serving = scales or {}, serving or {}
        entries = tuple(
            AdapterEntry(
                name=name,
                source=Source(uri=f"pvc://shelf/{name}"),
                digest=digest and sha(digest),
                scale=scales.get(name, 1.0),
                pinned=name in pinned,
                check=(checks or {}).get(name),
                serving=version(name, serving[name]) if name in serving else None,
            )
            for name, digest in digests.items()
        )
        self.entries = entries
        adapter_set = AdapterSet(pool_uid="p", config_hash="c", generation=self._generation, adapters=entries)
        self.residency.apply(adapter_set)
        await self.settle()

    async def acquire(self, name: str, seconds: float = 10) -> Lease:
        (lease,) = await self.residency.acquire([name], seconds)
        return lease

    async def settle(self) -> None:
        """Until every task that can go on has gone on; nothing here waits for a clock."""
        for _ in range(20):
            await asyncio.sleep(0)

    async def answer(self) -> list[Command]:
        """The engine does all that it was told; what that was."""
        told, self.sent[:] = list(self.sent), []
        for command in told:
            if isinstance(command, Mount) and command.digest in self.bad:
                self.residency.on_event(MountFailed(command.digest, EngineFault(ErrorCode.SHAPE_MISMATCH, "bad")))
            elif isinstance(command, Mount):
                facts = Files.facts.model_copy(update=self.mounted.get(command.digest, {}))
                self.residency.on_event(Mounted(command.digest, facts, bytes=1))
            elif isinstance(command, Unmount):
                self.residency.on_event(Unmounted(command.digest, self.kept_in if command.keep else None))
        await self.settle()
        return told

    async def work(self) -> None:
        """The engine does what it is told until it is told nothing more."""
        await self.settle()
        while await self.answer():
            pass

    def state(self, name: str) -> AdapterState | None:
        report = self.residency.report(name)
        return report.state if report is not None else None


def sha(digest: str) -> str:
    return f"sha256:{digest * 64}"


def version(name: str, digest: str) -> AdapterVersion:
    """Return a version of an adapter at its usual place."""
    return AdapterVersion(source=Source(uri=f"pvc://shelf/{name}"), digest=sha(digest))
