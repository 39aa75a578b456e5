"""From tokens to text as they come: whole characters only, and nothing past a stop string. Pure."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence

REPLACEMENT = "\ufffd"
HELD_REPLACEMENTS = 3
"""An unfinished character is at most three of its bytes, and each may show as one replacement character."""
WINDOW_TOKENS = 64
SEED_TOKENS = 8


class Detokenizer:
    """Turns tokens into text piece by piece, so that the pieces put together equal the decoded whole.

    Byte fallback decodes a run of neighbouring byte tokens together: one broken byte makes replacement characters of
    all of them. So the text of such a run is held back until the run has ended.

    Args:
        decode: token ids → text, special tokens left out.
        before: the end of the prompt; a tokenizer that drops a leading space must not drop one in mid-text.
        skipped: the tokens that `decode` leaves out.
        fallback: the tokens that stand for one byte each and are decoded a run at a time.
    """

    def __init__(
        self,
        decode: Callable[[Sequence[int]], str],
        before: Sequence[int] = (),
        *,
        skipped: Container[int] = (),
        fallback: Container[int] = (),
    ) -> None:
        self._decode, self._skipped, self._fallback = decode, skipped, fallback
        self._ids = self._seed(before)
        self._start = 0
        """Where the window that is decoded each time begins."""
        self._clean = len(self._ids)
        """Up to here the text is known to end in a whole character."""
        self._shown = decode(self._ids).rstrip(REPLACEMENT) if self._ids else ""
        """What of the window's text was delivered."""

    def push(self, tokens: Sequence[int]) -> str:
        """Return the new text, without what later tokens can still change."""
        seen = [token for token in tokens if token not in self._skipped]
        self._ids.extend(seen)
        if not seen or seen[-1] in self._fallback:
            return ""
        text = self._decode(self._ids[self._start :])
        held = min(len(text) - len(text.rstrip(REPLACEMENT)), HELD_REPLACEMENTS)
        stable = text[: len(text) - held]
        if not stable.startswith(self._shown):
            held, stable = len(text), self._shown
        piece, self._shown = stable[len(self._shown) :], stable
        if not held:
            self._move(self._clean, 0)
        elif len(self._ids) - self._start > WINDOW_TOKENS:
            self._move(max(self._clean, len(self._ids) - SEED_TOKENS), held)
        return piece

    def finish(self) -> str:
        """Return what was held back: a character that is not whole stays broken."""
        text = self._decode(self._ids[self._start :])
        piece, self._shown = text[len(self._shown) :], text
        return piece

    def _seed(self, before: Sequence[int]) -> list[int]:
        """Return the last tokens of the prompt, less a run of bytes at its end, which no token goes on with."""
        seed = [token for token in before[-WINDOW_TOKENS:] if token not in self._skipped]
        while seed and seed[-1] in self._fallback:
            seed.pop()
        return seed[-SEED_TOKENS:]

    def _move(self, start: int, held: int) -> None:
        """Let the window begin at `start` from now on; `held` characters at its end are not delivered yet."""
        self._start, self._clean = start, len(self._ids)
        text = self._decode(self._ids[start:])
        self._shown = text[: max(len(text) - held, 0)]


class StopStrings:
    """Cuts text before the stop string that is complete first, also when it comes in several pieces."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._held = ""
        self.hit = False

    def push(self, piece: str) -> str:
        """Return the text that can't be part of a stop string any more; nothing after one."""
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
        """Return what was held back in vain."""
        held, self._held = self._held, ""
        return held


def _overlap(text: str, stop: str) -> int:
    """Return how many characters at the end of `text` begin `stop`."""
    for length in range(min(len(text), len(stop) - 1), 0, -1):
        if text.endswith(stop[:length]):
            return length
    return 0
