"""Who may lead: what a Lease says, and when it may be taken.

Clocks of two machines are never compared. Whoever waits measures by its own clock how long the Lease has not changed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

WRITES_UNTIL = 2 / 3
"""The part of its duration, from the begin of a renewal, within which whoever holds a Lease may begin writes. What is
left is for writes that are on their way when it ends."""


@dataclass(frozen=True)
class LeaseView:
    """What a Lease says."""

    uid: str
    resource_version: str
    holder: str | None
    seconds: float
    transitions: int


@dataclass(frozen=True)
class Sighting:
    """A Lease, None where there is none, and since when it is known to be like that."""

    lease: LeaseView | None
    since: float
    """Seconds of a clock that only grows."""

    def again(self, lease: LeaseView | None, now: float) -> Sighting:
        """Return what is known after another look."""
        return self if lease == self.lease else Sighting(lease, now)

    def may_take(self, identity: str, now: float) -> bool:
        """Tell whether `identity` may take the Lease: it is nobody's, its own, or was not renewed for its duration."""
        if self.lease is None or self.lease.holder in (None, identity):
            return True
        return now - self.since >= self.lease.seconds


def read_lease(body: Mapping[str, Any] | None) -> LeaseView | None:
    """Read a Lease as the API server returns it."""
    if body is None:
        return None
    spec = body.get("spec") or {}
    return LeaseView(
        uid=body["metadata"]["uid"],
        resource_version=body["metadata"]["resourceVersion"],
        holder=spec.get("holderIdentity"),
        seconds=float(spec.get("leaseDurationSeconds") or 0),
        transitions=int(spec.get("leaseTransitions") or 0),
    )
