"""What a model thinks before it answers, told apart from the answer. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from graft_runtime.answering.calls import Reader, Said, overlap


@dataclass(frozen=True)
class Marks:
    """What a family writes around its thoughts."""

    begin: str
    end: str
    special: bool = False
    """They are special tokens."""


FAMILIES = (Marks("<think>", "</think>"), Marks("[THINK]", "[/THINK]", special=True))
"""Qwen's and DeepSeek's; Mistral's."""


def marks_of(template: str) -> Marks | None:
    """Return the marks of the model of a chat template; None: it has none that are known."""
    return next((marks for marks in FAMILIES if marks.end in template), None)


class Thinking:
    """Reads an answer that may begin with thoughts.

    Args:
        marks: around them.
        inner: reads what follows them; None: it is text.
        begun: the prompt ends with the first mark.
    """

    def __init__(self, marks: Marks, inner: Reader | None, *, begun: bool) -> None:
        self._marks, self._inner = marks, inner
        self._thinks: bool | None = True if begun else None
        """None: nothing but blanks was read, or what may begin a mark."""
        self._rest = ""
        self._trims = False
        """Blanks behind the second mark are dropped."""

    @property
    def special(self) -> bool:
        return self._marks.special or (self._inner is not None and self._inner.special)

    @property
    def called(self) -> bool:
        return self._inner is not None and self._inner.called

    def push(self, piece: str) -> Said:
        self._rest += piece
        if self._thinks is None:
            text = self._rest.lstrip()
            if self._marks.begin.startswith(text):
                self._thinks = True if text == self._marks.begin else None
                self._rest = "" if self._thinks else self._rest
                return Said()
            self._thinks = text.startswith(self._marks.begin)
            self._rest = text.removeprefix(self._marks.begin) if self._thinks else self._rest
        if not self._thinks:
            text, self._rest = self._rest, ""
            return self._answered(text)
        thoughts, mark, answer = self._rest.partition(self._marks.end)
        if mark:
            self._thinks, self._rest, self._trims = False, "", True
            said = self._answered(answer)
            return Said(said.text, said.calls, thoughts)
        held = overlap(self._rest, self._marks.end)
        thoughts, self._rest = self._rest[: len(self._rest) - held], self._rest[len(self._rest) - held :]
        return Said(reasoning=thoughts)

    def finish(self) -> Said:
        rest, self._rest = self._rest, ""
        if self._thinks:
            return Said(reasoning=rest)
        said = self._answered(rest)
        last = self._inner.finish() if self._inner is not None else Said()
        return Said(said.text + last.text, [*said.calls, *last.calls])

    def _answered(self, text: str) -> Said:
        if self._trims:
            text = text.lstrip()
            self._trims = not text
        return self._inner.push(text) if self._inner is not None else Said(text)
