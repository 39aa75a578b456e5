"""Which fields of a pod this node honours, which it accepts without enforcing them, and which it refuses.

The rules are a tree in the shape of a pod spec (`pod_fields.POD_SPEC`). A field that the tree does not name is refused:
a field that Kubernetes gains tomorrow is never ignored silently.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Supported:
    """Honoured, whatever the value; or for the scheduler and the API server only."""


@dataclass(frozen=True)
class Unenforced:
    """Accepted without effect; the pod gets an event that says so."""


@dataclass(frozen=True)
class Only:
    """Honoured for these values alone."""

    values: tuple[Any, ...]


@dataclass(frozen=True)
class Fields:
    """An object; what it does not name is refused."""

    fields: Mapping[str, Rule]
    required: Mapping[str, str] = field(default_factory=dict)
    """Fields that must be set, with the reason."""


@dataclass(frozen=True)
class Each:
    """A list (or map) whose items all follow one rule."""

    rule: Rule


Rule = Supported | Unenforced | Only | Fields | Each


@dataclass(frozen=True)
class Findings:
    """What a pod's spec asks for beyond what this node does.

    Args:
        refused: one sentence a field: its path and why.
        unenforced: paths of fields that are accepted without effect.
    """

    refused: tuple[str, ...]
    unenforced: tuple[str, ...]


def check(value: object, rule: Rule, path: str) -> Findings:
    """Hold `value`, found at `path`, against the rule."""
    refused: list[str] = []
    unenforced: list[str] = []
    for place, fault in _walk(value, rule, path):
        if fault is None:
            unenforced.append(place)
        else:
            refused.append(f"{place}: {fault}")
    return Findings(tuple(refused), tuple(unenforced))


def _walk(value: object, rule: Rule, path: str) -> Iterator[tuple[str, str | None]]:
    match rule:
        case Supported():
            return
        case Unenforced():
            if _is_set(value):
                yield path, None
        case Only(values):
            if _is_set(value) and value not in values:
                allowed = " or ".join(repr(item) for item in values)
                yield path, f"{value!r} isn't supported by this node" + (f", only {allowed}" if allowed else "")
        case Each(item_rule):
            for place, item in _items(value, path):
                yield from _walk(item, item_rule, place)
        case Fields():
            yield from _walk_fields(value, rule, path)


def _walk_fields(value: object, rule: Fields, path: str) -> Iterator[tuple[str, str | None]]:
    fields = value if isinstance(value, Mapping) else {}
    for name, reason in rule.required.items():
        if not _is_set(fields.get(name)):
            yield f"{path}.{name}", reason
    for name, item in fields.items():
        known = rule.fields.get(name)
        if known is not None:
            yield from _walk(item, known, f"{path}.{name}")
        elif _is_set(item):
            yield f"{path}.{name}", "not supported by this node"


def _items(value: object, path: str) -> Iterator[tuple[str, object]]:
    if isinstance(value, Mapping):
        yield from ((f"{path}[{key}]", item) for key, item in value.items())
    elif isinstance(value, list):
        yield from ((f"{path}[{index}]", item) for index, item in enumerate(value))


def _is_set(value: object) -> bool:
    return value is not None and value is not False and value not in ("", {}, [])
