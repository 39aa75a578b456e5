"""What others have added to the spec of an object of ours, where an apply of ours leaves it: it owns other fields."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from typing import Any

from graft_operator.settings import FIELD_MANAGER

Fields = Mapping[str, Any]
"""A set of fields as in metadata.managedFields: `f:` names one of an object, `k:` an entry of a list by its keys, and
`v:` one by its value."""

_TOLERATED = (("spec", "template", "metadata"),)
"""Labels and annotations of pods: `kubectl rollout restart` writes one, and many tools do."""


def foreign_pointers(body: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the fields below `spec` that others own and we don't, as JSON pointers in an order to remove them in."""
    entries = [entry for entry in body["metadata"].get("managedFields") or () if not entry.get("subresource")]
    ours = [_spec_of(entry) for entry in entries if entry.get("manager") == FIELD_MANAGER]
    theirs = [_spec_of(entry) for entry in entries if entry.get("manager") != FIELD_MANAGER]
    if not any(ours):
        return ()
    mine: dict[str, Any] = {}
    for fields in ours:
        mine = _union(mine, fields)
    paths = {path for fields in theirs for path in _beyond(body.get("spec"), fields, mine, ("spec",))}
    # Later entries of a list first, so that the places of the others stay.
    ordered = sorted(paths, key=lambda path: [(isinstance(step, int), step) for step in path], reverse=True)
    return tuple("".join(f"/{_escaped(step)}" for step in path) for path in ordered)


def _spec_of(entry: Mapping[str, Any]) -> Fields:
    found: Fields = (entry.get("fieldsV1") or {}).get("f:spec") or {}
    return found


def _union(one: Fields, other: Fields) -> dict[str, Any]:
    both = dict(one)
    for key, below in other.items():
        both[key] = _union(both[key], below) if key in both else below
    return both


def _beyond(value: Any, theirs: Fields, ours: Fields, path: tuple[str | int, ...]) -> Iterator[tuple[str | int, ...]]:
    for key, below in theirs.items():
        step = _step(value, key)
        if step is None or (*path, step) in _TOLERATED:
            continue
        if key not in ours:
            yield *path, step
        elif ours[key]:  # else we own all that is below
            yield from _beyond(value[step], below, ours[key], (*path, step))


def _step(value: Any, key: str) -> str | int | None:
    """Return where a value has what a key of a set of fields names; None where it has not."""
    kind, _, name = key.partition(":")
    if kind == "f" and isinstance(value, Mapping):
        return name if name in value else None
    if kind in ("k", "v") and isinstance(value, list):
        wanted = json.loads(name)
        found = (at for at, entry in enumerate(value) if _is_named(entry, wanted, by_keys=kind == "k"))
        return next(found, None)
    return None


def _is_named(entry: Any, wanted: Any, *, by_keys: bool) -> bool:
    if not by_keys:
        return bool(entry == wanted)
    return isinstance(entry, Mapping) and all(entry.get(key) == value for key, value in wanted.items())


def _escaped(step: str | int) -> str:
    return str(step).replace("~", "~0").replace("/", "~1")
