"""Calls of tools in the text of an answer, as it comes piece by piece. Pure."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_HEAD = re.compile(r'\{\s*"name"\s*:\s*(?P<name>"(?:[^"\\]|\\.)*")\s*,\s*"(?P<key>\w+)"\s*:\s*(?=\{)')
_BETWEEN = ",;[]"
MAX_NAME = 256
"""Characters of a name that is written before a call's object, and of the mark behind it."""
_decoder = json.JSONDecoder()


@dataclass(frozen=True)
class CallPart:
    """What came of one call of a tool."""

    index: int
    """Of the call in the answer."""
    arguments: str
    """More of the text of its arguments, which is JSON once it is whole."""
    id: str | None = None
    """With the first part, as the name is."""
    name: str | None = None


@dataclass(frozen=True)
class Said:
    """What a piece of an answer says."""

    text: str = ""
    calls: Sequence[CallPart] = ()
    reasoning: str = ""
    """What the model thinks before it answers."""


class Reader(Protocol):
    """Tells the parts of one answer apart."""

    @property
    def special(self) -> bool:
        """Return whether it needs the special tokens in the text."""

    @property
    def called(self) -> bool:
        """Return whether an answer that ends here ends for its calls: not where the request names the tool."""

    def push(self, piece: str) -> Said:
        """Return what a piece of the answer says."""

    def finish(self) -> Said:
        """Return what was held back."""


@dataclass(frozen=True)
class CallStyle:
    """How models of a family write calls: JSON objects with a name and arguments, between marks."""

    begin: Sequence[str]
    """Marks before calls."""
    end: str = ""
    """The mark behind a call; nothing where calls go on to the end of the answer."""
    arguments: Sequence[str] = ("arguments", "parameters")
    """Keys that hold them, the one that the family writes first."""
    bare: bool = False
    """An answer that begins with an object is a call without a mark."""
    name_end: str = ""
    """Where a call is a name, this mark, and an object of arguments."""
    special: bool = False
    """The marks are special tokens, which a grammar has no text for."""
    id_characters: int | None = None
    """That an id must have; None: as many as OpenAI's."""

    def new_id(self) -> str:
        """Return an id for a call."""
        return secrets.token_hex(16)[: self.id_characters] if self.id_characters else f"call_{secrets.token_hex(12)}"


class Calls:
    """Tells calls and other text of one answer apart.

    Args:
        style: how the model writes calls.
        inside: the answer begins with a call, whose mark is not written.
        most: calls that are told, those after them are not; None: all.
        named: the request names the tool.
    """

    def __init__(self, style: CallStyle, *, inside: bool = False, most: int | None = None, named: bool = False) -> None:
        self.style, self._inside, self._most, self._by_name = style, inside, most, named
        self._rest = ""
        """What is not read yet."""
        self._began = inside
        """Something was read: an object is no answer's beginning any more."""
        self._told = 0
        """Characters of the arguments at the beginning of `_rest` that were told."""
        self._open = False
        """The name of that call was told."""
        self.count = 0
        """Calls that were begun."""

    @property
    def special(self) -> bool:
        return self.style.special

    @property
    def called(self) -> bool:
        return self.count > 0 and not self._by_name

    def push(self, piece: str) -> Said:
        """Return what a piece of the answer says."""
        return self._read(piece, last=False)

    def finish(self) -> Said:
        """Return what was held back in vain: a call without an end is text, unless its name was told."""
        said = self._read("", last=True)
        rest = "" if self._open or (self.count and not self._rest.strip()) else self._rest
        self._rest = ""
        return Said(said.text + rest, said.calls)

    def _read(self, piece: str, *, last: bool) -> Said:
        self._rest += piece
        texts: list[str] = []
        parts: list[CallPart] = []
        while self._call(parts, last=last) if self._inside else self._text(texts):
            pass
        shown = [part for part in parts if self._most is None or part.index < self._most]
        return Said("".join(texts), shown)

    def _text(self, texts: list[str]) -> bool:
        """Read text up to a mark. Hold back what may begin one, and blanks, which are dropped before a call.

        Returns:
            Whether a call begins.
        """
        rest, marks = self._rest, self.style.begin
        if self.style.bare and not self._began and rest.lstrip().startswith("{"):
            self._inside, self._began = True, True
            return True
        places = [(at, mark) for mark in marks if (at := rest.find(mark)) >= 0]
        if places:
            at, mark = min(places)
            texts.append(rest[:at].rstrip())
            self._inside, self._began, self._rest = True, True, rest[at + len(mark) :]
            return True
        held = max((overlap(rest, mark) for mark in marks), default=0)
        text = rest[: len(rest) - held].rstrip()
        self._began = self._began or bool(text)
        texts.append(text)
        self._rest = rest[len(text) :]
        return False

    def _call(self, parts: list[CallPart], *, last: bool) -> bool:
        """Read on in calls. Returns whether there is more to read."""
        marks = [mark for mark in (self.style.end, *self.style.begin) if mark]
        rest = self._rest = self._rest if self._open else self._rest.lstrip()
        mark = next((mark for mark in marks if rest.startswith(mark)), None)
        if mark is not None:
            self._inside, self._rest = mark != self.style.end, rest[len(mark) :].lstrip()
            return True
        name, source = self._named(rest)
        if source.startswith("{"):
            return self._object(name, source, parts)
        if not rest or (not last and any(mark.startswith(rest) for mark in marks)):
            return False
        if rest[0] in _BETWEEN:
            self._rest = rest[1:]
            return True
        if last or not self.style.name_end or len(rest) > MAX_NAME:
            self._inside = False  # no call after all
            return not last
        return False

    def _named(self, rest: str) -> tuple[str, str]:
        """Return the name that a call begins with, where it does, and what follows."""
        end = self.style.name_end
        if not end or rest.startswith("{") or end not in rest[:MAX_NAME]:
            return "", rest
        name, _, source = rest.partition(end)
        return name.strip(), source

    def _object(self, name: str, source: str, parts: list[CallPart]) -> bool:
        """Read a call that begins with an object, as far as it goes. Returns whether that ends."""
        try:
            value, end = _decoder.raw_decode(source)
        except ValueError:
            value, end = None, 0
        head = _HEAD.match(source)
        if name:
            self._tell(parts, name, _value(source))
        elif head is not None and head["key"] in self.style.arguments:
            self._tell(parts, json.loads(head["name"]), _value(source[head.end() :]))
        elif value is not None:
            found = _named(value, self.style.arguments)
            if found is None:
                self._inside = False
                return False
            self._tell(parts, *found)
        if value is None:
            return False
        self._rest, self._open, self._told = source[end:], False, 0
        return True

    def _tell(self, parts: list[CallPart], name: str, arguments: str) -> None:
        if not self._open:
            self._open, self._told = True, 0
            self.count += 1
            parts.append(CallPart(self.count - 1, "", self.style.new_id(), name))
        if more := arguments[self._told :]:
            parts.append(CallPart(self.count - 1, more))
            self._told = len(arguments)


def _value(source: str) -> str:
    """Return the JSON that a text begins with, or all of it while that has no end."""
    try:
        return source[: _decoder.raw_decode(source)[1]]
    except ValueError:
        return source


def _named(value: Any, keys: Sequence[str]) -> tuple[str, str] | None:
    """Return name and arguments of a call that is whole; None: it is none."""
    name = value.get("name")
    arguments: Any = next((value[key] for key in keys if key in value), {})
    if not isinstance(name, str):
        return None
    return name, arguments if isinstance(arguments, str) else json.dumps(arguments, ensure_ascii=False)


def overlap(text: str, mark: str) -> int:
    """Return how many characters at the end of a text begin a mark."""
    return next((size for size in range(min(len(text), len(mark) - 1), 0, -1) if text.endswith(mark[:size])), 0)
