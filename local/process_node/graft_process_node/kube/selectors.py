"""Label selectors."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def matches_selector(selector: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    """Whether `labels` match `matchLabels` and every one of `matchExpressions`; an empty selector matches all."""
    return matches_labels(selector.get("matchLabels") or {}, labels) and all(
        _holds(expression, labels) for expression in selector.get("matchExpressions") or []
    )


def matches_labels(wanted: Mapping[str, str], labels: Mapping[str, str]) -> bool:
    """Whether every wanted label is there."""
    return all(labels.get(key) == value for key, value in wanted.items())


def _holds(expression: Mapping[str, Any], labels: Mapping[str, str]) -> bool:
    key, values = expression["key"], expression.get("values") or []
    match expression["operator"]:
        case "In":
            return labels.get(key) in values
        case "NotIn":
            return labels.get(key) not in values
        case "Exists":
            return key in labels
        case _:
            return key not in labels
