"""Whether a regular expression matches a whole text, in time that no pattern can blow up.

`re` tries one way through a pattern after the other, and strangers can write patterns with more ways than there are
nanoseconds. Here all ways are followed at once, character by character (Thompson's construction; sets of states are
remembered as they come up, as a deterministic automaton would have them). https://swtch.com/~rsc/regexp/regexp1.html

The pattern is parsed by `re`'s own parser, and single characters and anchors are left to `re`, so both agree.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from re import _compiler, _constants, _parser  # type: ignore[attr-defined]  # the only parser that agrees with `re`
from typing import Any

MAX_STATES = 2048
MAX_LOOKS = 8
MAX_CACHE = 1 << 14
_CHARACTERS = {_constants.LITERAL, _constants.NOT_LITERAL, _constants.ANY, _constants.IN}
_REPETITIONS = {_constants.MAX_REPEAT, _constants.MIN_REPEAT}
_LOOKS = {_constants.ASSERT, _constants.ASSERT_NOT}


class TooComplexError(ValueError):
    """A pattern that needs more than an automaton; the text says what."""


@dataclass
class _State:
    """One place in the pattern: go on to `next` if `character` takes the next one, or for nothing if `free` lets it."""

    next: tuple[int, ...] = ()
    character: Callable[[str], bool] | None = None
    free: Callable[[str, str], bool] | None = None
    """Of the characters before and after the place; None for always."""
    look: int | None = None
    """Only where this one of the automaton's looks holds."""


@dataclass(frozen=True)
class _Look:
    """`(?=…)`, `(?!…)`, `(?<=…)` or `(?<!…)`."""

    inner: Automaton
    wanted: bool
    behind: int | None
    """The characters that it looks back."""

    def holds(self, text: str, position: int) -> bool:
        if self.behind is None:
            return self.inner.reaches(text, position, None) == self.wanted
        start = position - self.behind
        return (start >= 0 and self.inner.reaches(text, start, position)) == self.wanted


_States = frozenset[int]
_Step = tuple[bool, _States]
"""Whether the pattern may end here, and where it goes on after the next character."""


class Automaton:
    """A pattern that was parsed by `re._parser`.

    Args:
        parsed: of `re._parser.parse`.

    Raises:
        TooComplexError: it refers back to a group, is atomic, looks around too often, or repeats too much.
    """

    def __init__(self, parsed: Any, *, inside_look: bool = False) -> None:
        self._states: list[_State] = []
        self._looks: list[_Look] = []
        self._inside_look = inside_look
        self._parts = 0
        self._accept = self._add()
        self._start = frozenset((self._sequence(parsed, parsed.state.flags, self._accept),))
        self._steps: dict[tuple[_States, str, str, tuple[bool, ...]], _Step] = {}

    def fullmatch(self, text: str) -> bool:
        """Tell whether the whole text matches."""
        return self.reaches(text, 0, len(text))

    def reaches(self, text: str, start: int, end: int | None) -> bool:
        """Tell whether a match begins at `start` and ends at `end`, or ends anywhere when `end` is None."""
        states = self._start
        for position in range(start, len(text) + 1):
            after = text[position : position + 1]
            looks = tuple(look.holds(text, position) for look in self._looks)
            accepts, states = self._step(states, text[position - 1 : position] if position else "", after, looks)
            if accepts and end in (None, position):
                return True
            if not states or position == end:
                return False
        return False

    def _step(self, states: _States, before: str, after: str, looks: tuple[bool, ...]) -> _Step:
        key = (states, before, after, looks)
        if (known := self._steps.get(key)) is not None:
            return known
        here = self._reachable(states, before, after, looks)
        onward = (self._states[state] for state in here)
        following = frozenset(
            target for state in onward if state.character and after and state.character(after) for target in state.next
        )
        if len(self._steps) >= MAX_CACHE:
            self._steps.clear()
        self._steps[key] = step = (self._accept in here, following)
        return step

    def _reachable(self, states: Iterable[int], before: str, after: str, looks: tuple[bool, ...]) -> set[int]:
        """Return the states that these states reach without taking a character."""
        found: set[int] = set()
        waiting = list(states)
        while waiting:
            number = waiting.pop()
            if number in found:
                continue
            found.add(number)
            state = self._states[number]
            blocked = (state.free and not state.free(before, after)) or (
                state.look is not None and not looks[state.look]
            )
            if state.character is None and not blocked:
                waiting += state.next
        return found

    def _add(self, **state: Any) -> int:
        if len(self._states) >= MAX_STATES:
            raise TooComplexError("it repeats too much")
        self._states.append(_State(**state))
        return len(self._states) - 1

    def _sequence(self, parsed: Iterable[tuple[Any, Any]], flags: int, then: int) -> int:
        self._parts += 1  # empty ones are repeated as well, and make no state
        if self._parts > MAX_STATES:
            raise TooComplexError("it repeats too much")
        for operator, argument in reversed(list(parsed)):
            then = self._one(operator, argument, flags, then)
        return then

    def _one(self, operator: Any, argument: Any, flags: int, then: int) -> int:
        """Return the state that begins this part of a pattern and goes on to `then`."""
        if operator is _constants.SUBPATTERN:
            _, added, removed, inner = argument
            return self._sequence(inner, (flags | added) & ~removed, then)
        if operator is _constants.BRANCH:
            return self._add(next=tuple(self._sequence(branch, flags, then) for branch in argument[1]))
        if operator in _REPETITIONS:
            return self._repetition(argument, flags, then)
        if operator in _LOOKS:
            return self._look(operator, argument, flags, then)
        return self._add(next=(then,), **_place(operator, argument, flags))

    def _repetition(self, argument: Any, flags: int, then: int) -> int:
        least, most, inner = argument
        if most is _constants.MAXREPEAT:
            loop = self._add()
            self._states[loop].next = (self._sequence(inner, flags, loop), then)
            then = loop
        elif most > MAX_STATES:
            raise TooComplexError("it repeats too much")
        else:
            for _ in range(most - least):
                then = self._add(next=(self._sequence(inner, flags, then), then))
        for _ in range(min(least, MAX_STATES + 1)):
            then = self._sequence(inner, flags, then)
        return then

    def _look(self, operator: Any, argument: Any, flags: int, then: int) -> int:
        direction, inner = argument
        if self._inside_look or len(self._looks) >= MAX_LOOKS:
            raise TooComplexError("it looks around inside of a look, or too often")
        automaton = Automaton(_with_flags(list(inner), flags), inside_look=True)
        behind = inner.getwidth()[0] if direction < 0 else None
        self._looks.append(_Look(automaton, operator is _constants.ASSERT, behind))
        return self._add(next=(then,), look=len(self._looks) - 1)


def _place(operator: Any, argument: Any, flags: int) -> dict[str, Any]:
    """Return what a state asks of the text: a character, or an anchor's place between two. Raises TooComplexError."""
    if operator is _constants.LITERAL and not flags & re.IGNORECASE:
        return {"character": chr(argument).__eq__}
    if operator is _constants.FAILURE:
        return {"free": lambda before, after: False}
    if operator not in _CHARACTERS and operator is not _constants.AT:
        raise TooComplexError(f"it uses {str(operator).lower()}")
    expression = _compiler.compile(_with_flags([(operator, argument)], flags))
    if operator is _constants.AT:
        return {"free": lambda before, after: expression.match(before + after, len(before)) is not None}
    return {"character": lambda character: expression.match(character) is not None}


def _with_flags(items: list[tuple[Any, Any]], flags: int) -> Any:
    state = _parser.State()
    state.flags = flags
    return _parser.SubPattern(state, items)
