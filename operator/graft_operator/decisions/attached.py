"""Which Adapters a pool answers for beside the entries of its own spec, and why it doesn't answer for the others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from graft_runtime.contract.checkpoints import Source

from graft_operator.decisions.conditions import Reason
from graft_operator.decisions.observed import AdapterView, Failure
from graft_operator.decisions.wanted_adapters import WantedAdapter, answer_check, refresh_seconds
from graft_operator.keys import ObjectKey
from graft_operator.objects import Pool
from graft_operator.resource import MAX_ATTACHED, AttachedAdapterSpec

MAX_ATTACHED_CHARACTERS = 2**18
"""Of the names, sources and checks of a pool's Adapters: with their digests they fit into one ConfigMap, and twice
while all of them move to other versions."""


@dataclass(frozen=True)
class Attached:
    """The Adapters of a pool, told apart."""

    wanted: tuple[WantedAdapter, ...] = ()
    """What the pool is to answer for, the oldest first."""
    refused: Mapping[ObjectKey, Failure] = field(default_factory=dict)
    """Why the others are not served."""


def attach(pool: Pool, adapters: Iterable[AdapterView]) -> Attached:
    """Decide which Adapters a pool is to answer for.

    The base model and the pool's own spec have their names first, then the older Adapter before the younger one.
    """
    holders = {
        adapter.name: f"an entry of spec.adapters of AdapterDeployment {pool.name}" for adapter in pool.spec.adapters
    }
    holders[pool.spec.base_model.served_name] = f"the base model of AdapterDeployment {pool.name}"
    wanted: list[WantedAdapter] = []
    refused: dict[ObjectKey, Failure] = {}
    characters = 0
    for view in sorted(adapters, key=lambda view: (view.created, view.name)):
        if view.deleting:
            continue
        spec, name = view.spec, view.served_name
        if not isinstance(spec, AttachedAdapterSpec):
            refused[view.key] = spec
            continue
        length = sum(len(text or "") for text in (name, spec.uri, spec.revision, *_texts(spec)))
        if name in holders:
            refused[view.key] = _taken(name, holders[name])
        elif len(wanted) == MAX_ATTACHED or characters + length > MAX_ATTACHED_CHARACTERS:
            refused[view.key] = _too_many(pool)
        else:
            holders[name] = f"Adapter {view.name}, which is older"
            characters += length
            wanted.append(_wanted(pool, view, spec))
    return Attached(tuple(wanted), refused)


def _wanted(pool: Pool, view: AdapterView, spec: AttachedAdapterSpec) -> WantedAdapter:
    return WantedAdapter(
        name=view.served_name,
        source=Source(uri=spec.uri, revision=spec.revision),
        digest=spec.digest,
        scale=spec.scale,
        pinned=False,
        share=1,
        owner=view.key,
        refresh_seconds=refresh_seconds(spec, pool),
        check=answer_check(spec),
    )


def _texts(spec: AttachedAdapterSpec) -> tuple[str | None, ...]:
    check = spec.check
    return (check.prompt, check.message, check.contains, check.equals) if check is not None else ()


def _taken(name: str, holder: str) -> Failure:
    message = f"the name `{name}` belongs to {holder}\n\nhint: make an Adapter of another name, or remove the other"
    return Failure(Reason.NAME_TAKEN, message)


def _too_many(pool: Pool) -> Failure:
    message = (
        f"AdapterDeployment {pool.name} answers for {MAX_ATTACHED} Adapters at most, whose names, sources and checks"
        f" have {MAX_ATTACHED_CHARACTERS} characters at most in all; older ones have all of that"
        "\n\nhint: delete Adapters that are not needed any more, or attach this one to another AdapterDeployment"
    )
    return Failure(Reason.TOO_MANY_ADAPTERS, message)
