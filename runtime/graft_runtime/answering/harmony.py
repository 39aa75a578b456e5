"""The channels in which GPT-OSS answers: thoughts, calls of tools, and what is for the user. Pure.

https://github.com/openai/harmony: `<|channel|>NAME<|message|>TEXT<|end|>`, before it `<|start|>assistant`;
`to=functions.NAME` in the head makes a call of it.
"""

from __future__ import annotations

import re

from graft_runtime.answering.calls import CallPart, CallStyle, Said, overlap

_MESSAGE = "<|message|>"
_ENDS = ("<|end|>", "<|call|>", "<|return|>", "<|start|>", "<|channel|>")
_TO = re.compile(r"to=functions\.([\w.-]+)")
_IDS = CallStyle(())


class Harmony:
    """Reads an answer in channels.

    Args:
        most: calls that are told, those after them are not; None: all.
    """

    special = True

    def __init__(self, *, most: int | None = None) -> None:
        self._most = most
        self._head: str | None = None
        """Of the message that is being read; None: it is not whole yet."""
        self._call: int | None = None
        """The number of the call that the message is."""
        self._rest = ""
        self.count = 0

    @property
    def called(self) -> bool:
        return self.count > 0

    def push(self, piece: str) -> Said:
        self._rest += piece
        return self._read(last=False)

    def finish(self) -> Said:
        return self._read(last=True)

    def _read(self, *, last: bool) -> Said:
        texts: list[str] = []
        calls: list[CallPart] = []
        thoughts: list[str] = []
        while True:
            if self._head is None:
                head, mark, rest = self._rest.partition(_MESSAGE)
                if not mark:
                    break
                self._begin(head, calls)
                self._rest = rest
            places = [(at, end) for end in _ENDS if (at := self._rest.find(end)) >= 0]
            at, end = min(places, default=(len(self._rest), ""))
            held = 0 if end or last else max(overlap(self._rest, mark) for mark in _ENDS)
            self._tell(self._rest[: at - held], texts, calls, thoughts)
            self._rest = self._rest[at - held :]
            if not end:
                break
            self._head, self._rest = None, self._rest[len(end) :]
        return Said("".join(texts), calls, "".join(thoughts))

    def _begin(self, head: str, calls: list[CallPart]) -> None:
        """Take note of the head of a message, which says whether it is a call."""
        self._head, self._call = head, None
        if (called := _TO.search(head)) is None:
            return
        self._call, self.count = self.count, self.count + 1
        if self._told:
            calls.append(CallPart(self._call, "", _IDS.new_id(), called[1]))

    @property
    def _told(self) -> bool:
        return self._call is not None and (self._most is None or self._call < self._most)

    def _tell(self, text: str, texts: list[str], calls: list[CallPart], thoughts: list[str]) -> None:
        if not text:
            return
        if self._call is not None:
            if self._told:
                calls.append(CallPart(self._call, text))
        elif self._head is not None and "analysis" in self._head:
            thoughts.append(text)
        else:
            texts.append(text)
