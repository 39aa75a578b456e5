"""Regular expressions from strangers: PEFT's configs hold them, and `re` can take for ever on the wrong ones."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from re import _constants, _parser  # type: ignore[attr-defined]  # the only parser that agrees with `re`
from typing import Any, Protocol

from graft_runtime.adapters.automaton import Automaton, TooComplexError

MAX_PATTERN_LENGTH = 1024
LONGEST_PATH = 256
"""Characters of a module's path, for the sum of what a match may cost."""
MAX_WAYS = 1 << 10
"""Ways through a pattern that `re` may try one after the other; it is faster than an automaton then."""


_ANY_LAYER = re.compile(r".*?\.[^.]*\.(\d{1,18})\.")
_NUMBER = re.compile(r"\.(\d{1,18})(?=\.)")


class UnsafePatternError(ValueError):
    """A pattern that is no regular expression, or that asks for more than one; the text says which."""


class _Engine(Protocol):
    def fullmatch(self, text: str) -> object: ...


@dataclass(frozen=True)
class Expression:
    """A regular expression that matches in bounded time, whatever it says."""

    engine: _Engine
    cheap: bool
    """It has few ways through; others cost milliseconds a module at worst."""

    def matches(self, path: str) -> bool:
        """Tell whether the whole path matches, as `re.fullmatch` says."""
        return bool(self.engine.fullmatch(path))


def compile_pattern(text: str, wrapped: str = "{}") -> Expression:
    """Compile a regular expression in the syntax of `re`.

    References back, atomic groups and characters beyond ASCII are left out.

    Args:
        text: the pattern.
        wrapped: a pattern of ours with that one in the place of its braces.

    Raises:
        UnsafePatternError: too long, no regular expression, or one of what is left out.
    """
    if len(text) > MAX_PATTERN_LENGTH:
        raise UnsafePatternError(f"it has {len(text)} characters, expected at most {MAX_PATTERN_LENGTH}")
    try:
        _check_characters(_parser.parse(text))
        whole = wrapped.replace("{}", text)
        parsed = _parser.parse(whole)
        cheap = _ways(parsed) <= MAX_WAYS
        return Expression(re.compile(whole) if cheap else Automaton(parsed), cheap)
    except TooComplexError as error:
        raise UnsafePatternError(str(error)) from None
    except (re.error, RecursionError, OverflowError, FutureWarning) as error:
        raise UnsafePatternError(f"it is no regular expression: {error}") from None


def layer_of(path: str, patterns: Collection[Expression]) -> int | None:
    """Return the layer that PEFT's `layers_pattern` sees in a path.

    The layer is the number after the first place where a pattern matches, as `(?:^|.*?\\.){pattern}\\.(\\d+)\\.` does
    in PEFT (tuners_utils.py, check_target_module_exists). Without a pattern, any name does that has another before it.
    """
    if not patterns:
        found = _ANY_LAYER.match(path)
        return int(found[1]) if found else None
    starts = [0, *(index + 1 for index, character in enumerate(path) if character == ".")]
    numbers = list(_NUMBER.finditer(path))
    for pattern in patterns:
        for start in starts:
            for number in reversed(numbers):
                if number.start() >= start and pattern.matches(path[start : number.start()]):
                    return int(number[1])
    return None


def _check_characters(parsed: Any) -> None:
    """Check that no set reaches beyond ASCII: `re` walks through each set, and module paths hold nothing but ASCII.

    Raises UnsafePatternError.
    """
    waiting = [parsed]
    while waiting:
        item = waiting.pop()
        if isinstance(item, _parser.SubPattern | list | tuple):
            waiting += list(item)
            if len(item) == 2 and item[0] in (_constants.LITERAL, _constants.NOT_LITERAL, _constants.RANGE):
                highest = item[1][1] if item[0] is _constants.RANGE else item[1]
                if highest > 127:
                    raise UnsafePatternError("it names characters beyond ASCII, which no module's path has")


def _ways(parsed: Any) -> int:
    """Return an upper bound of the ways that `re` may try before it gives up on a path.

    The bound is MAX_WAYS + 1 for more ways than MAX_WAYS.
    """
    ways = 1
    for operator, argument in parsed:
        ways *= _ways_of(operator, argument)
        if ways > MAX_WAYS:
            return MAX_WAYS + 1
    return ways


def _ways_of(operator: Any, argument: Any) -> int:
    if operator in (_constants.MAX_REPEAT, _constants.MIN_REPEAT, _constants.POSSESSIVE_REPEAT):
        least, most, inner = argument
        inside = _ways(inner)
        counts = min(most, LONGEST_PATH) - min(least, LONGEST_PATH) + 1
        simple = inside == 1 and inner.getwidth()[0] > 0
        return int(counts if simple else (inside + 1) ** min(most, LONGEST_PATH))
    if operator is _constants.BRANCH:
        return sum(_ways(branch) for branch in argument[1])
    if operator is _constants.SUBPATTERN:
        return _ways(argument[3])
    if operator in (_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN, _constants.AT):
        return 1
    return MAX_WAYS + 1
