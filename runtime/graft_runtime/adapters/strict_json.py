"""JSON from strangers: bounded, no key twice, no NaN or Infinity."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any, NoReturn

from graft_runtime.errors import ErrorCode, GraftError, cut

MAX_DEPTH = 16
CONTAINERS = (dict, list)


def _refuse_constant(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not a number")


def parse_object(
    text: bytes,
    what: str,
    code: ErrorCode,
    *,
    constant: Callable[[str], Any] = _refuse_constant,
    levels: int = MAX_DEPTH,
) -> dict[str, Any]:
    """Parse the JSON object in `text`.

    Args:
        text: UTF-8; the caller has bounded its length.
        what: how an error calls it.
        code: the code of that error.
        constant: makes a value of NaN, Infinity or -Infinity, for a caller that refuses it by the field's name.
        levels: that objects and lists may be nested.

    Raises:
        GraftError: with `code`.
    """
    try:
        value = json.loads(text.decode(), object_pairs_hook=_no_key_twice, parse_constant=constant)
    except RecursionError:
        raise GraftError(code, f"{what} is nested more than {levels} levels deep") from None
    except ValueError as error:
        raise GraftError(code, f"{what} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise GraftError(code, f"{what} is a JSON {_type(value)}, expected an object")
    if _depth(value, levels) > levels:
        raise GraftError(code, f"{what} is nested more than {levels} levels deep")
    return value


def _no_key_twice(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, value in pairs:
        if key in found:
            raise ValueError(f"the key {cut(key, 80)!r} appears twice")
        found[key] = value
    return found


def _type(value: object) -> str:
    names = {list: "array", str: "string", bool: "boolean", type(None): "null"}
    return names.get(type(value), "number")


def _depth(value: dict[str, Any], most: int) -> int:
    """Return how deep a value is nested, or more than `most`."""
    depth, level = 0, list[Any]([value])
    while level and depth <= most:
        depth += 1
        level = [
            child
            for item in level
            for child in (item.values() if type(item) is dict else item)
            if type(child) in CONTAINERS
        ]
    return depth
