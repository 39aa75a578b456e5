"""Whether an object is still as the last apply left it, and where it first differs if not."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from itertools import zip_longest
from typing import Any

MAX_VALUE = 200
"""Characters of a value that are shown."""
# Written by others on every object or on every roll: no drift.
_FOREIGN_METADATA = frozenset(
    {"managedFields", "resourceVersion", "generation", "creationTimestamp", "selfLink", "deletionTimestamp"}
)
_FOREIGN_ANNOTATIONS = frozenset({"deployment.kubernetes.io/revision"})
_ABSENT = object()


def fingerprint(body: Mapping[str, Any]) -> str:
    """Return a hash of what is wanted of an object, defaults included."""
    return short_hash(_wanted_part(body))


def short_hash(value: object) -> str:
    """Return the first 16 hex digits of the sha256 of the JSON of `value`."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def first_difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> str | None:
    """Return the first path at which two bodies of an object differ, with both values; None where none does.

    Paths are compared in alphabetical order, entries of lists by their position: `spec.replicas: 3 instead of 1`, where
    3 is the value before. What a fingerprint leaves out is left out here as well.
    """
    difference = _difference(_wanted_part(before), _wanted_part(after), "")
    return None if difference is None else difference.removeprefix(".")


def _wanted_part(body: Mapping[str, Any]) -> dict[str, Any]:
    metadata = {key: value for key, value in body["metadata"].items() if key not in _FOREIGN_METADATA}
    annotations = metadata.get("annotations") or {}
    metadata["annotations"] = {key: annotations[key] for key in annotations if key not in _FOREIGN_ANNOTATIONS}
    wanted = {key: value for key, value in body.items() if key not in ("status", "metadata", "apiVersion", "kind")}
    return {**wanted, "metadata": metadata}


def _difference(before: Any, after: Any, path: str) -> str | None:
    if before == after:
        return None
    for step, old, new in _parts(before, after):
        if (difference := _difference(old, new, path + step)) is not None:
            return difference
    if ".env[" in path:  # may be a secret, and logs are read by more people than the object
        return f"{path} differs"
    return f"{path}: {_shown(before)} instead of {_shown(after)}"


def _parts(before: Any, after: Any) -> Iterator[tuple[str, Any, Any]]:
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted(before.keys() | after.keys()):
            step = f".{key}" if key.isalnum() else f"[{key}]"
            yield step, before.get(key, _ABSENT), after.get(key, _ABSENT)
    if isinstance(before, list) and isinstance(after, list):
        for index, (old, new) in enumerate(zip_longest(before, after, fillvalue=_ABSENT)):
            yield f"[{index}]", old, new


def _shown(value: Any) -> str:
    if value is _ABSENT:
        return "nothing"
    if isinstance(value, dict | list):
        return "{…}" if isinstance(value, dict) else "[…]"
    text = repr(value)
    return text if len(text) <= MAX_VALUE else f"{text[:MAX_VALUE]}…"
