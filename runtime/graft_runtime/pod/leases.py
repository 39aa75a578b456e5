"""What a request holds of the adapters of a pod."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import ServedAdapter, Tier
from graft_runtime.pod.aliases import Alias
from graft_runtime.pod.catalogue import Artifact


class Holder(Protocol):
    """Who holds a lease."""

    def fail(self, error: GraftError) -> None:
        """End with this error."""


class Lease:
    """One request's hold on one version of an adapter, until `release`."""

    def __init__(self, alias: Alias, artifact: Artifact, tier: Tier | None, ended: Callable[[Lease], None]) -> None:
        self.digest = artifact.digest
        self.served = ServedAdapter(artifact.digest, alias.scale)
        self.alias = alias
        self.share = alias.entry.share
        self.artifact = artifact
        self.tier = tier
        """The tier that the adapter was in when it was asked for; None: in none yet."""
        self.holder: Holder | None = None
        """What runs on it."""
        self._ended = ended
        self._released = False

    def revoke(self) -> None:
        """End what runs on it: the adapter was removed, and its time to drain is over."""
        if self.holder is not None:
            what = f"`{self.alias.entry.name}` was removed, and the time for running requests is over"
            self.holder.fail(GraftError(ErrorCode.UNKNOWN_MODEL, what, field="model"))

    @property
    def facts(self) -> AdapterFacts:
        """Return what the adapter is."""
        assert self.artifact.facts is not None, "it is mounted"
        return self.artifact.facts

    def release(self) -> None:
        """Let the adapter go; once or more often."""
        if not self._released:
            self._released = True
            self._ended(self)


def unknown_model(name: str, field: str, *, hint: str) -> GraftError:
    """Return the 404 for a name that nothing answers under, sent in `field`."""
    what = f"`{field}` is {name!r}, which is not served here"
    return GraftError(ErrorCode.UNKNOWN_MODEL, what, hint=hint, field=field)
