"""Which adapter set the pods of each RuntimeConfig are to serve.

current   the RuntimeConfig of the spec: its entries follow the spec
frozen    earlier ones that pods still run with: adapters that left the spec still unload, nothing else changes
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import GraftError

from graft_operator.decisions.checks import adapter_fault
from graft_operator.decisions.observed import Observed, PodView
from graft_operator.decisions.versions import Catalogue, Held, entry_of
from graft_operator.decisions.wanted_adapters import WantedAdapter
from graft_operator.resource import AdapterDeploymentSpec, is_declared
from graft_operator.settings import Settings

MAX_GENERATION = 2**53
"""From here on a generation is no count, and the next one could not be written down."""


@dataclass(frozen=True)
class AdapterPlan:
    """What becomes of one wanted adapter."""

    wanted: WantedAdapter
    entry: AdapterEntry | None = None
    """Its entry in the current set; None: it stays out."""
    fault: GraftError | None = None
    """Why the spec's version is not served."""
    unresolved: Source | None = None
    """The source whose digest has to be found out."""
    doubted: Source | None = None
    """The source to be looked at again: for other bytes, or because those that it held have a fault that others end."""
    look_from: float = 0.0
    """Unix seconds from which that is."""

    @property
    def asked(self) -> Source | None:
        """Return the source that a pod is to be asked about."""
        return self.unresolved or self.doubted


@dataclass(frozen=True)
class _Answers:
    """What is known of sources."""

    held: Mapping[Source, Held]
    """As written down, or as pods answered where it is written down nowhere."""
    news: Mapping[Source, Held]
    """As pods answered."""
    faults: Mapping[Source, Fault]
    looked_at: Mapping[Source, float]
    """Unix seconds of the last look."""
    refresh_since: float
    """Unix seconds: earlier looks don't count."""

    def follows(self, adapter: WantedAdapter) -> bool:
        """Tell whether an adapter becomes what its source holds later on."""
        return adapter.digest is None and (adapter.refresh_seconds is not None or self.refresh_since > 0)

    def next_look(self, adapter: WantedAdapter) -> float | None:
        """Return from when (Unix seconds) an adapter's source is to be looked at for other bytes; None: never."""
        looked_at = self.looked_at.get(adapter.source, 0.0)
        if looked_at < self.refresh_since:
            return self.refresh_since
        return None if adapter.refresh_seconds is None else looked_at + adapter.refresh_seconds


@dataclass(frozen=True)
class Push:
    """An adapter set for one pod."""

    pod: PodView
    adapter_set: AdapterSet


def plan_adapters(
    spec: AdapterDeploymentSpec,
    wanted: Iterable[WantedAdapter],
    observed: Observed,
    config_hash: str,
    settings: Settings,
) -> tuple[AdapterPlan, ...]:
    """Decide what becomes of each wanted adapter, in their order.

    A version that can't be had yet, or at all, leaves the one that is served in place.
    """
    stored = observed.stored_sets
    entries = _entries(stored, config_hash)
    news = _news(observed)
    answers = _Answers(
        held=news | _recorded(observed, entries),
        news=news,
        faults=_resolution_faults(observed),
        looked_at={source: answer.asked_at for source, answer in observed.resolutions.items()},
        refresh_since=observed.refresh_since,
    )
    catalogue = Catalogue.of(observed, stored.get(config_hash), entries, config_hash)
    return tuple(_plan_adapter(spec, adapter, answers, catalogue, settings) for adapter in wanted)


def sources_to_remember(adapters: Iterable[AdapterPlan], observed: Observed, config_hash: str) -> frozenset[Source]:
    """Return the sources of which answers must be kept: they are written down nowhere else, or may be outdated."""
    recorded = _recorded(observed, _entries(observed.stored_sets, config_hash))
    plans, news = tuple(adapters), _news(observed)
    sources = {plan.wanted.source for plan in plans}
    unrecorded = {
        source for source in sources if source not in recorded or news.get(source, recorded[source]) != recorded[source]
    }
    return frozenset(unrecorded | {plan.doubted for plan in plans if plan.doubted is not None})


def next_sets(
    observed: Observed, adapters: Iterable[AdapterPlan], names: frozenset[str], current: str
) -> dict[str, AdapterSet]:
    """Return config hash → the set that its pods are to serve: the current one, and those that pods still run with.

    Args:
        names: of the wanted adapters.
        current: the config hash whose set follows the spec.
    """
    stored = observed.stored_sets
    entries = tuple(adapter.entry for adapter in adapters if adapter.entry is not None)
    wanted = {current: AdapterSet(pool_uid=observed.pool.uid, config_hash=current, generation=1, adapters=entries)}
    for config_hash in observed.config_hashes & stored.keys() - {current}:
        kept = tuple(entry for entry in stored[config_hash].adapters if entry.name in names)
        wanted[config_hash] = stored[config_hash].model_copy(update={"adapters": kept})
    return {
        config_hash: _numbered(adapter_set, stored.get(config_hash), _known_versions(observed, config_hash))
        for config_hash, adapter_set in wanted.items()
    }


def plan_pushes(observed: Observed, sets: Mapping[str, AdapterSet]) -> tuple[Push, ...]:
    """Return the set of each pod that answers and has another one in force."""
    versions = {config_hash: adapter_set.version for config_hash, adapter_set in sets.items()}
    return tuple(
        Push(pod, sets[status.config_hash])
        for pod in observed.pods
        if (status := observed.report(pod)) is not None
        and not pod.deleting
        and status.config_hash in sets
        and status.adapter_set != versions[status.config_hash]
    )


def obsolete_hashes(observed: Observed, wanted: Iterable[str]) -> set[str]:
    """Return the config hashes that have ConfigMaps, but no pods any more and no way to make one."""
    if observed.rollout is None or not observed.rollout.settled:
        return set()
    kept = observed.config_hashes | {observed.rollout.config_hash, *wanted}
    return {child.config_hash for child in observed.own_children if child.config_hash} - kept


def _plan_adapter(
    spec: AdapterDeploymentSpec, adapter: WantedAdapter, answers: _Answers, catalogue: Catalogue, settings: Settings
) -> AdapterPlan:
    fault = adapter_fault(spec, adapter, settings)
    source = adapter.source
    held = answers.held.get(source)
    if adapter.digest is not None and (held is None or held.digest != adapter.digest):
        held = Held(adapter.digest)
    if fault is None and held is not None:
        return _plan_known(spec, adapter, held, answers, catalogue)
    written = catalogue.entries.get(adapter.name)
    previous = _previous(spec, written)
    if fault is not None:
        return AdapterPlan(adapter, previous, fault)
    if previous is not None:
        return AdapterPlan(adapter, previous, unresolved=source)
    entry = entry_of(adapter, None, catalogue, merged=False)
    # The fault that is written down holds until there is another answer, also for the next operator.
    told = written.fault if written is not None and written.source == source else None
    return AdapterPlan(adapter, entry.model_copy(update={"fault": answers.faults.get(source, told)}), unresolved=source)


def _plan_known(
    spec: AdapterDeploymentSpec, adapter: WantedAdapter, held: Held, answers: _Answers, catalogue: Catalogue
) -> AdapterPlan:
    """Plan an adapter whose digest is known; where that has a fault, its source may hold other bytes by now."""
    follows = answers.follows(adapter) and spec.merge is None  # what is merged can't be exchanged
    doubted = adapter.digest is None and catalogue.may_be_cured_at_its_source(adapter.name, held.digest)
    next_look = 0.0 if doubted else answers.next_look(adapter) if follows else None
    if doubted or follows:
        held = answers.news.get(adapter.source, held)
    entry = entry_of(adapter, held, catalogue, merged=spec.merge is not None)
    if entry.serving is not None and not is_declared(spec.sources, entry.serving.source.uri):
        entry = entry.model_copy(update={"serving": None})
    if next_look is None:
        return AdapterPlan(adapter, entry)
    return AdapterPlan(adapter, entry, doubted=adapter.source, look_from=next_look)


def _previous(spec: AdapterDeploymentSpec, served: AdapterEntry | None) -> AdapterEntry | None:
    """Return what may be served until the spec's version can be had.

    Still declared: what was withdrawn on purpose must not live on under its old entry. And hot: what is merged is not
    exchanged later, so a merge waits for the spec's version.
    """
    if spec.merge is not None or served is None or not served.digest:
        return None
    return served if is_declared(spec.sources, served.source.uri) else None


def _resolution_faults(observed: Observed) -> dict[Source, Fault]:
    """Return why sources can't be resolved, where a person must look."""
    return {
        source: answer.fault
        for source, answer in observed.resolutions.items()
        if answer.fault is not None and not answer.fault.code.passes
    }


def _news(observed: Observed) -> dict[Source, Held]:
    """Return what pods have answered of sources."""
    return {
        source: Held(answer.digest, answer.revision) for source, answer in observed.resolutions.items() if answer.digest
    }


def _recorded(observed: Observed, entries: Iterable[AdapterEntry]) -> dict[Source, Held]:
    """Return what is written down of sources, in the statuses and in the adapter sets, which win.

    What was resolved before is not resolved again, also by the next operator.
    """
    recorded = {
        Source(uri=adapter.uri, revision=adapter.requested_revision): (adapter.digest, adapter.revision)
        for adapter in observed.adapter_statuses
        if adapter.uri
    }
    recorded |= {entry.source: (entry.digest, entry.revision) for entry in entries}
    return {source: Held(digest, revision) for source, (digest, revision) in recorded.items() if digest}


def _entries(stored: Mapping[str, AdapterSet], config_hash: str) -> list[AdapterEntry]:
    """Return the entries of all sets; those of the current one last, so that they win."""
    others = [key for key in sorted(stored) if key != config_hash]
    return [entry for key in (*others, config_hash) if key in stored for entry in stored[key].adapters]


def _known_versions(observed: Observed, config_hash: str) -> list[AdapterSetVersion]:
    reports = [status for pod in observed.pods if (status := observed.report(pod)) is not None]
    recorded = [
        AdapterSetVersion(generation=known.generation, hash=known.hash)
        for known in observed.pool.status.adapter_sets
        if known.config_hash == config_hash
    ]
    known = [status.adapter_set for status in reports if status.config_hash == config_hash] + recorded
    return [version for version in known if version.generation < MAX_GENERATION]


def _numbered(wanted: AdapterSet, stored: AdapterSet | None, known: list[AdapterSetVersion]) -> AdapterSet:
    """Return the stored set if it is as wanted and nothing contradicts it, else one of a generation above all known."""
    if stored is not None and stored.entries_hash() == wanted.entries_hash():
        known_hash = stored.content_hash()
        if all(
            version.generation < stored.generation
            or (version.generation == stored.generation and version.hash in ("", known_hash))
            for version in known
        ):
            return stored
    generations = [version.generation for version in known] + ([stored.generation] if stored is not None else [])
    return wanted.model_copy(update={"generation": 1 + max(generations, default=0)})
