"""Which objects a pool needs, and which of them have to be applied or deleted."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from graft_operator.decisions.fingerprint import short_hash
from graft_operator.decisions.observed import Applied, Child, Observed, applied_hash
from graft_operator.kinds import CONFIG_MAP, DEPLOYMENT, POD_DISRUPTION_BUDGET
from graft_operator.objects import KubernetesObject, Pool, build_disruption_budget


@dataclass(frozen=True)
class WantedObject:
    """An object that the pool needs."""

    body: KubernetesObject
    desired: str
    """A hash of `body`."""

    @property
    def key(self) -> tuple[str, str]:
        return self.body["kind"], self.body["metadata"]["name"]


@dataclass(frozen=True)
class Apply(WantedObject):
    """A server-side apply. `uid` and `resource_version`: the object that must be there; no uid: there must be none."""

    uid: str | None
    resource_version: str | None = None
    dry_run_first: bool = False
    drifted: bool = False
    """The object was applied as it is wanted, and somebody else has changed or deleted it since."""
    foreign: bool = False
    """What others have added to its spec has to be removed first."""


def wanted_objects(bodies: Iterable[KubernetesObject | None]) -> tuple[WantedObject, ...]:
    """Return the bodies that there are, hashed."""
    return tuple(WantedObject(body, short_hash(body)) for body in bodies if body is not None)


def last_applies(wanted: Sequence[WantedObject], observed: Observed) -> Mapping[tuple[str, str], Applied]:
    """Return the last apply of each wanted object, where it is known.

    An operator that just started remembers none; it takes the objects as they are for its last applies where the hash
    in the status says so.
    """
    known = observed.applied
    if known:
        return {one.key: known[one.key] for one in wanted if one.key in known}
    supposed = {
        one.key: Applied(one.desired, child.fingerprint)
        for one in wanted
        if (child := observed.own(*one.key)) is not None
    }
    return supposed if applied_hash(supposed) == observed.pool.status.applied_hash else {}


def plan_applies(
    pool: Pool, wanted: Sequence[WantedObject], observed: Observed, last: Mapping[tuple[str, str], Applied]
) -> tuple[Apply, ...]:
    """Return an apply for each wanted object that is not there as the last apply left it."""
    return tuple(
        _plan_apply(pool, one, observed.own(*one.key), last.get(one.key))
        for one in wanted
        if not _in_sync(one, observed.own(*one.key), last.get(one.key))
    )


def plan_deletes(pool: Pool, obsolete: set[str], observed: Observed) -> tuple[Child, ...]:
    """Return our objects that are not needed any more.

    Args:
        obsolete: config hashes whose ConfigMaps nothing needs.
    """
    unwanted = {(POD_DISRUPTION_BUDGET.name, pool.name)} if build_disruption_budget(pool) is None else set()
    return tuple(
        child
        for child in observed.own_children
        if not child.deleting
        and ((child.kind, child.name) in unwanted or (child.kind == CONFIG_MAP.name and child.config_hash in obsolete))
    )


def _plan_apply(pool: Pool, wanted: WantedObject, existing: Child | None, last: Applied | None) -> Apply:
    # A set must follow the very one that its generation was counted from.
    races = existing is not None and existing.adapter_set is not None
    foreign = existing is not None and existing.foreign
    return Apply(
        body=wanted.body,
        desired=wanted.desired,
        uid=None if existing is None else existing.uid,
        resource_version=existing.resource_version if existing is not None and races else None,
        # Together with what others have added it may be refused.
        dry_run_first=wanted.body["kind"] == DEPLOYMENT.name and bool(pool.spec.pod_template.spec) and not foreign,
        drifted=foreign or (last is not None and last.desired == wanted.desired),
        foreign=foreign,
    )


def _in_sync(wanted: WantedObject, existing: Child | None, last: Applied | None) -> bool:
    return existing is not None and not existing.foreign and last == Applied(wanted.desired, existing.fingerprint)
