"""From tokens to text as they come: whole characters only, and nothing past a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Sequence

REPLACEMENT = "\ufffd"
HELD_REPLACEMENTS = 3
"""An unfinished character is at most three of its bytes, and each may show as one replacement character."""
WINDOW_TOKENS = 64
SEED_TOKENS = 8


class Detokenizer:
    """Turns tokens into text piece by piece, so that the pieces put together equal the decoded whole.

    Args:
        decode: token ids → text, special tokens left out.
        before: the end of the prompt; a tokenizer that drops a leading space must not drop one in mid-text.
    """

    def __init__(self, decode: Callable[[Sequence[int]], str], before: Sequence[int] = ()) -> None:
        self._decode = decode
        self._ids = list(before[-SEED_TOKENS:])
        self._start = 0
        """Where the window that is decoded each time begins."""
        self._clean = len(self._ids)
        """Up to here the text is known to end in a whole character."""
        self._shown = len(decode(self._ids).rstrip(REPLACEMENT)) if self._ids else 0
        """Characters of the window's text that were delivered."""

    def push(self, tokens: Sequence[int]) -> str:
        """The new text, without a character that is not whole yet."""
        self._ids.extend(tokens)
        text = self._decode(self._ids[self._start :])
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), HELD_REPLACEMENTS)
        stable = text[: len(text) - held]
        piece = stable[self._shown :]
        self._shown = max(self._shown, len(stable))
        if not held:
            self._move(self._clean, 0)
        elif len(self._ids) - self._start > WINDOW_TOKENS:
            self._move(max(self._clean, len(self._ids) - SEED_TOKENS), held)
        return piece

    def finish(self) -> str:
        """What was held back: the character stays broken."""
        text = self._decode(self._ids[self._start :])
        piece = text[self._shown :]
        self._shown = len(text)
        return piece

    def _move(self, start: int, held: int) -> None:
        """The window begins at `start` from now on; `held` characters at its end are not delivered yet."""
        self._start, self._clean = start, len(self._ids)
        self._shown = max(len(self._decode(self._ids[start:])) - held, 0)


class StopStrings:
    """Cuts text before the stop string that is complete first, also when it comes in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, piece: str) -> str:
        """The text that can't be part of a stop string any more; nothing after one."""
        if self.hit:
            return ""
        text = self._held + piece
        ends = [(place + len(stop), place) for stop in self._stops if (place := text.find(stop)) >= 0]
        if ends:
            self.hit, self._held = True, ""
            return text[: min(ends)[1]]
        keep = max((_overlap(text, stop) for stop in self._stops), default=0)
        self._held = text[len(text) - keep :]
        return text[: len(text) - keep]

    def finish(self) -> str:
        """What was held back in vain."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of `text` begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
