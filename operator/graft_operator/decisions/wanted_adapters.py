"""What a pool is to serve as adapters, whoever asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from graft_runtime.contract.answer_check import AnswerCheck
from graft_runtime.contract.checkpoints import Source

from graft_operator.keys import ObjectKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.objects import Pool
from graft_operator.resource import AdapterSource, interval_seconds


@dataclass(frozen=True)
class WantedAdapter:
    """One adapter that the pool is to serve."""

    name: str
    """Its name in requests."""
    source: Source
    digest: str | None
    """The sha256 that it must have; None: whatever the source holds."""
    scale: float
    pinned: bool
    share: int
    owner: ObjectKey
    """The object that asks for it: the pool, for an entry of its spec, or an Adapter."""
    refresh_seconds: int | None = None
    """How long after a look at its source there is another one; None: never."""
    check: AnswerCheck | None = None
    """What a new version must answer before it takes the name."""

    @property
    def inline(self) -> bool:
        """Tell whether the pool's own spec asks for it."""
        return self.owner.kind == ADAPTER_DEPLOYMENT.name

    @property
    def label(self) -> str:
        """Return how messages name the adapter."""
        of_owner = "" if self.inline else f" of {self.owner.kind} {self.owner.name}"
        return f"adapter `{self.name}`{of_owner}"


def inline_adapters(pool: Pool) -> tuple[WantedAdapter, ...]:
    """Return what `spec.adapters` asks for, in its order."""
    owner = ObjectKey(ADAPTER_DEPLOYMENT.name, pool.namespace, pool.name)
    return tuple(
        WantedAdapter(
            name=adapter.name,
            source=Source(uri=adapter.uri, revision=adapter.revision),
            digest=adapter.digest,
            scale=adapter.scale,
            pinned=adapter.pinned,
            share=adapter.share,
            owner=owner,
            refresh_seconds=refresh_seconds(adapter, pool),
            check=answer_check(adapter),
        )
        for adapter in pool.spec.adapters
    )


def refresh_seconds(adapter: AdapterSource, pool: Pool) -> int | None:
    """Return how long after a look at the adapter's source there is another one; None: never."""
    interval = adapter.refresh_interval or pool.spec.refresh_interval
    return interval_seconds(interval) if interval else None


def answer_check(adapter: AdapterSource) -> AnswerCheck | None:
    """Return what a new version of the adapter must answer, as the contract has it."""
    return AnswerCheck(**adapter.check.model_dump()) if adapter.check is not None else None
