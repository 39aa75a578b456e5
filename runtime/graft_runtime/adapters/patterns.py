"""Regular expressions from strangers: PEFT's configs hold them, and `re` can take for ever on the wrong ones."""

from __future__ import annotations

import re
from re import _constants, _parser  # type: ignore[attr-defined]  # the only parser that agrees with `re`
from typing import Any

MAX_PATTERN_LENGTH = 1024
MAX_WILDCARDS = 4
"""Unbounded repetitions one after the other; with one more, each match could take seconds."""
LARGE_REPETITION = 16

_REPETITIONS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT}


class UnsafePatternError(ValueError):
    """A pattern that is no regular expression, or one that could be too slow; the text says which."""


def compile_pattern(text: str, wrapped: str = "{}") -> re.Pattern[str]:
    """`wrapped` with the pattern in the place of its braces, compiled.

    Raises:
        UnsafePatternError: too long, no regular expression, or one that could backtrack for seconds.
    """
    if len(text) > MAX_PATTERN_LENGTH:
        raise UnsafePatternError(f"it has {len(text)} characters, expected at most {MAX_PATTERN_LENGTH}")
    try:
        wildcards = _wildcards(_parser.parse(text))
        compiled = re.compile(wrapped.replace("{}", text))
    except (re.error, RecursionError, OverflowError) as error:
        raise UnsafePatternError(f"it is no regular expression: {error}") from None
    if wildcards > MAX_WILDCARDS:
        raise UnsafePatternError(f"it has {wildcards} repetitions in a row, expected at most {MAX_WILDCARDS}")
    return compiled


def _wildcards(parsed: Any) -> int:
    """The most unbounded repetitions on one way through the pattern. Raises UnsafePatternError for nested ones."""
    return sum(_wildcards_of(operator, argument) for operator, argument in parsed)


def _wildcards_of(operator: Any, argument: Any) -> int:
    if operator in _REPETITIONS:
        least, most, inner = argument
        repeated = _wildcards(inner)
        varies = most != least and most > 1
        if repeated and most > 1:
            raise UnsafePatternError("it nests one repetition in another")
        return max(repeated, int(varies and most > LARGE_REPETITION))
    if operator is _constants.BRANCH:
        return max(_wildcards(branch) for branch in argument[1])
    if operator in {_constants.GROUPREF, _constants.GROUPREF_EXISTS}:
        raise UnsafePatternError("it refers back to a group")
    children = argument if isinstance(argument, tuple | list) else (argument,)
    return sum(_wildcards(child) for child in children if isinstance(child, _parser.SubPattern))
