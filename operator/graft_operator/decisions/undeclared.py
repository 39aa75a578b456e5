"""A status for a CustomResourceDefinition that is older than the operator: without what it does not know."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from graft_operator.decisions.transitions import Transition
from graft_operator.kinds import Kind

_UNDECLARED = re.compile(r"\.(status\.[^\s:]+): field not declared in schema")
_KEYS = re.compile(r"\[[^\]]*\]")


def undeclared_fields(refusal: str) -> tuple[str, ...]:
    """Return the fields that the API server's refusal names, such as `status.adapters.digest`, whichever the entry."""
    return tuple(sorted({_KEYS.sub("", path) for path in _UNDECLARED.findall(refusal)}))


def without(body: Any, field: str) -> Any:
    """Return a body without a field, in each entry of the lists on the way to it."""
    return _without(body, field.split("."))


def definition_outdated(kind: Kind, fields: Sequence[str]) -> Transition:
    """Tell of fields that are left out of the status."""
    message = (
        f"the CustomResourceDefinition is older than the operator and lacks {', '.join(fields)}: they are left out"
        "\n\nhint: upgrade the release that brought the definition (its name is an annotation of the definition"
        f" {kind.plural}.{kind.group}), or apply crds/ of the operator's version"
    )
    return Transition("Warning", "DefinitionOutdated", message)


def _without(body: Any, steps: Sequence[str]) -> Any:
    if isinstance(body, list):
        return [_without(entry, steps) for entry in body]
    if not isinstance(body, dict) or steps[0] not in body:
        return body
    if len(steps) == 1:
        return {key: value for key, value in body.items() if key != steps[0]}
    return {**body, steps[0]: _without(body[steps[0]], steps[1:])}
