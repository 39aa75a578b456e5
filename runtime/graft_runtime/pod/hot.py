"""Hot mode: adapters beside the base, fetched, checked and mounted, and lent to requests. One event loop."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Iterator

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.config import Merge
from graft_runtime.contract.status import AdapterReport
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseLoaded, MergeSource, Tier
from graft_runtime.pod.adapters import AdapterEvent, AskVersion, NamedAdapters
from graft_runtime.pod.aliases import Alias, is_settled, report
from graft_runtime.pod.answer_checks import AnswerChecks
from graft_runtime.pod.catalogue import Artifact
from graft_runtime.pod.leases import Lease, unknown_model
from graft_runtime.pod.lending import Lending
from graft_runtime.pod.mounting import Mounting

logger = logging.getLogger(__name__)


class HotAdapters:
    """The adapters of one pod: see `Adapters`.

    Args:
        mounting: of their versions.
        drain_seconds: how long requests may go on under a name that was removed.
        changed: called with a name whenever its report may differ.
    """

    default_model: str | None = None
    merged_digest: str | None = None
    merged: Merge | None = None

    def __init__(self, mounting: Mounting, drain_seconds: float, changed: Callable[[str], None]) -> None:
        self._mounting, self._drain_seconds, self._changed = mounting, drain_seconds, changed
        mounting.touched = self._touched
        self._lending = Lending(self._find, mounting, self._returned)
        self._checks = AnswerChecks(self._find_wanted, mounting, self._returned, self._checked)
        self._aliases: dict[str, Alias] = {}
        self._draining: dict[str, Alias] = {}
        self._names: dict[str, list[str]] = {}
        """By digest, of those that point to it."""
        self.acquire = self._lending.acquire

    @property
    def digests(self) -> frozenset[str]:
        """Return the digests that the cache must keep. Read by other threads."""
        return self._mounting.digests

    def apply(self, adapter_set: AdapterSet) -> None:
        """Put an adapter set in force."""
        entries = {entry.name: entry for entry in adapter_set.adapters}
        for name in [name for name in self._aliases if name not in entries]:
            self._checks.stop(name)
            self._remove(self._aliases.pop(name))
        for entry in entries.values():
            alias = self._aliases.setdefault(entry.name, Alias(entry))
            alias.entry = entry
            if entry.answering is None:
                alias.serving = None
        self._mounting.forgive()
        self._refresh()
        for name, alias in self._aliases.items():
            self._checks.follow(alias, self._mounting.get(alias.entry.digest))
            self._changed(name)

    def answer_checks(self, asking: Callable[[NamedAdapters], AskVersion]) -> None:
        """Have the checks of wanted versions answered."""
        self._checks.ask = asking(self._checks)

    async def merge_sources(self, failed: Callable[[GraftError], None]) -> tuple[MergeSource, ...]:
        """Return nothing: the base stays as it is."""
        return ()

    def base_loaded(self, loaded: BaseLoaded) -> None:
        """Begin to mount."""
        self._mounting.base_loaded(loaded)

    def base_failed(self, error: GraftError) -> None:
        """Mount nothing, ever; the fault is the base's alone."""

    def names(self) -> Iterator[str]:
        """Iterate over the catalogue, in its order."""
        return iter(tuple(self._aliases))

    def is_served(self, name: str) -> bool:
        """Return whether the catalogue has this name."""
        return name in self._aliases

    def share(self, name: str) -> int:
        """Return the share of a name, as its entry says; 1 for any other."""
        alias = self._aliases.get(name)
        return alias.entry.share if alias is not None else 1

    def unknown(self, name: str, field: str = "model") -> GraftError:
        """Return the 404 for a name that is not in the catalogue."""
        return unknown_model(
            name, field, hint="GET /v1/models lists the served names; to serve another one, add it to spec.adapters"
        )

    def report(self, name: str) -> AdapterReport | None:
        """Return what is true of a name; None when it is gone."""
        alias = self._aliases.get(name) or self._draining.get(name)
        if alias is None:
            return None
        return report(alias, self._mounting.get(alias.entry.digest))

    def tier(self, name: str) -> Tier | None:
        """Return where what answers under a name is; None: in no tier yet, or no such name."""
        alias = self._aliases.get(name)
        artifact = self._answering(alias) if alias is not None else None
        return artifact.tier if artifact is not None else None

    def is_settled(self, entry: AdapterEntry) -> bool:
        """Tell whether the version that is to answer under the name does, or has a fault."""
        version = entry.answering
        alias = self._aliases.get(entry.name)
        artifact = self._mounting.get(version.digest) if version is not None else None
        return alias is not None and is_settled(alias, artifact)

    def on_event(self, event: AdapterEvent) -> None:
        """Take what the engine says of a version, and let names be answered by it."""
        if (artifact := self._mounting.on_event(event)) is None:
            return
        left_behind = [self._switch(self._aliases[name]) for name in self._names.get(artifact.digest, ())]
        if not artifact.wanted or any(left_behind):
            self._refresh()
        else:
            self._mounting.advance()
        self._touched(artifact)

    def _find(self, name: str) -> tuple[Alias, Artifact]:
        alias = self._aliases.get(name)
        if alias is None:
            raise GraftError(ErrorCode.UNKNOWN_MODEL, f"`{name}` is not served here any more", field="model")
        fault = alias.entry.fault
        artifact = self._answering(alias)
        if artifact is None and fault is not None:
            raise GraftError(fault.code, fault.message, field="model")
        if artifact is None:
            raise GraftError(
                ErrorCode.RESOLVING,
                f"the exact version of adapter `{name}` is not known yet",
                hint="try again; the AdapterDeployment's status says more",
                field="model",
            )
        return alias, artifact

    def _find_wanted(self, name: str) -> tuple[Alias, Artifact]:
        alias = self._aliases.get(name)
        artifact = self._mounting.get(alias.entry.digest) if alias is not None else None
        if alias is None or artifact is None:
            raise GraftError(ErrorCode.UNKNOWN_MODEL, f"`{name}` is not wanted any more", field="model")
        return alias, artifact

    def _checked(self, alias: Alias, artifact: Artifact) -> None:
        """Let a name be answered by a version that has passed its check; tell of one that hasn't."""
        if self._switch(alias):
            self._refresh()
        else:
            self._mounting.advance()
        self._touched(artifact)

    def _answering(self, alias: Alias) -> Artifact | None:
        """Return the version that requests under a name get; None while its digest is not known."""
        return self._mounting.get(alias.version.digest) if alias.version is not None else None

    def _remove(self, alias: Alias) -> None:
        alias.removed = True
        name = alias.entry.name
        if self._lending.of(alias):
            self._draining[name] = alias
            asyncio.get_running_loop().call_later(self._drain_seconds, self._revoke, alias)
        self._changed(name)

    def _revoke(self, alias: Alias) -> None:
        for lease in self._lending.of(alias):
            lease.revoke()

    def _refresh(self) -> None:
        """Switch names whose new version is ready, and bring the versions in line with the names."""
        self._names = {}
        for name, alias in self._aliases.items():
            self._switch(alias)
            for digest in alias.versions:
                self._names.setdefault(digest, []).append(name)
        self._mounting.keep({digest: [self._aliases[name] for name in names] for digest, names in self._names.items()})

    def _switch(self, alias: Alias) -> bool:
        """Let a name be answered by the version that is to, when that is ready. Return whether one is left behind."""
        new, old = alias.entry.answering, alias.serving
        artifact = self._mounting.get(new.digest) if new is not None else None
        if new is None or new == old or artifact is None or not alias.may_answer(new, artifact):
            return False
        alias.serving = new
        if old is None or old.digest == new.digest:
            return False
        logger.info("`%s` is answered by %s from now on", alias.entry.name, new.digest)
        self._lending.wake(old.digest)
        return True

    def _returned(self, lease: Lease) -> None:
        name = lease.alias.entry.name
        if self._draining.get(name) is lease.alias and not self._lending.of(lease.alias):
            del self._draining[name]
            self._changed(name)
        if not lease.artifact.wanted:
            self._refresh()
        elif self._mounting.short:
            self._mounting.advance()

    def _touched(self, artifact: Artifact) -> None:
        for name in self._names.get(artifact.digest, ()):
            alias = self._aliases.get(name)
            if alias is not None and alias.entry.digest == artifact.digest:
                self._checks.follow(alias, artifact)
            self._changed(name)
        self._lending.wake(artifact.digest)
        self._checks.wake(artifact.digest)
