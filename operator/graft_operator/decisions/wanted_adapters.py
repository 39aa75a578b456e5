"""What a pool is to serve as adapters, whoever asks for it."""

from __future__ import annotations

from dataclasses import dataclass

from graft_runtime.contract.checkpoints import Source

from graft_operator.keys import ObjectKey
from graft_operator.kinds import ADAPTER_DEPLOYMENT
from graft_operator.objects import Pool
from graft_operator.resource import interval_seconds


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
    """The object that asks for it: the pool, for an entry of its spec."""
    refresh_seconds: int | None = None
    """How long after a look at its source there is another one; None: never."""

    @property
    def label(self) -> str:
        """Return how messages name the adapter."""
        of_owner = "" if self.owner.kind == ADAPTER_DEPLOYMENT.name else f" of {self.owner.kind} {self.owner.name}"
        return f"adapter `{self.name}`{of_owner}"


def inline_adapters(pool: Pool) -> tuple[WantedAdapter, ...]:
    """Return what `spec.adapters` asks for, in its order."""
    owner = ObjectKey(ADAPTER_DEPLOYMENT.name, pool.namespace, pool.name)
    every = pool.spec.refresh_interval
    return tuple(
        WantedAdapter(
            name=adapter.name,
            source=Source(uri=adapter.uri, revision=adapter.revision),
            digest=adapter.digest,
            scale=adapter.scale,
            pinned=adapter.pinned,
            share=adapter.share,
            owner=owner,
            refresh_seconds=interval_seconds(interval) if (interval := adapter.refresh_interval or every) else None,
        )
        for adapter in pool.spec.adapters
    )
