"""Which requests run together: who waits, and who is in which batch."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, field

from graft_runtime.engine.sampling import Draws
from graft_runtime.messages import Submit
from graft_runtime.model.deltas import RowAdapter
from graft_runtime.runners.padded import PaddedBatch

MAX_BATCHES = 8
"""Batches that run side by side: a request that comes while others decode starts one, and joins another later."""
PADDING_ALLOWED = 4096
"""Tokens of padding that joining two batches may cost, beside as many again as both hold."""
PREFILL_TOKENS = 16_384
"""Of one batch, padding included; a longer prompt runs in a batch of its own."""


@dataclass(eq=False)
class Request:
    """One request, from its arrival to its last token."""

    submit: Submit
    adapters: tuple[RowAdapter, ...]
    draws: Draws
    max_tokens: int
    """As asked, and no more than the context has room for."""
    tokens: list[int] = field(default_factory=list)
    alone: bool = False
    """It was in a step that failed: it is tried again by itself, so that only the culprit fails."""

    @property
    def so_far(self) -> list[int]:
        """Prompt and answer."""
        return self.submit.prompt + self.tokens


@dataclass(eq=False)
class Batch:
    """Requests that run together; the state of the runner exists from the first step on."""

    requests: list[Request]
    state: PaddedBatch | None = None

    def join(self, other: Batch) -> None:
        """Takes in the other's rows; its requests are here even when joining the states fails."""
        self.requests = self.requests + other.requests
        assert self.state is not None
        assert other.state is not None
        self.state.join(other.state, [request.adapters for request in self.requests])

    def keep(self, rows: list[int]) -> None:
        """Drops every other row."""
        if len(rows) == len(self.requests):
            return
        self.requests = [self.requests[row] for row in rows]
        if self.state is not None and rows:
            self.state.keep(rows)


def _fit(first: Batch, second: Batch) -> bool:
    """Whether both run already, none of their rows must be alone, and joining them does not cost too much padding."""
    if first.state is None or second.state is None or any(r.alone for r in first.requests + second.requests):
        return False
    held = sum(len(batch.requests) * batch.state.length for batch in (first, second) if batch.state is not None)
    rows = len(first.requests) + len(second.requests)
    return rows * max(first.state.length, second.state.length) <= 2 * held + PADDING_ALLOWED


class Scheduler:
    """First come, first served, up to `max_sequences` rows in up to MAX_BATCHES batches.

    Args:
        max_sequences: rows that run at once.
        pads: whether prompts of unequal length may share a batch.
        joins: whether batches that run can become one.
    """

    def __init__(self, max_sequences: int, *, pads: bool, joins: bool) -> None:
        self._joins = joins
        self._max_sequences = max_sequences
        self._pads = pads
        self._waiting: deque[Request] = deque()
        self.batches: list[Batch] = []

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def running(self) -> int:
        return sum(len(batch.requests) for batch in self.batches)

    @property
    def busy(self) -> bool:
        return bool(self._waiting or self.batches)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def admit(self) -> None:
        """Starts batches while there is room."""
        while self._waiting and len(self.batches) < MAX_BATCHES and self.running < self._max_sequences:
            self.batches.append(Batch(self._next(self._max_sequences - self.running)))

    def pairs(self) -> Iterator[tuple[Batch, Batch]]:
        """Batches that had better run as one; each second one is gone from here when it is told."""
        if not self._joins:
            return
        for first in list(self.batches):
            for second in list(self.batches):
                if first in self.batches and first is not second and _fit(first, second):
                    self.batches.remove(second)
                    yield first, second

    def again(self, batch: Batch) -> None:
        """The batch failed: each of its requests runs again, by itself, before any other."""
        self.batches.remove(batch)
        for request in reversed(batch.requests):
            request.alone = True
            self._waiting.appendleft(request)

    def drop(self, name: str) -> Request | None:
        """The request of this name leaves, whether it waits or runs; None when there is none."""
        for request in self._waiting:
            if request.submit.request == name:
                self._waiting.remove(request)
                return request
        for batch in self.batches:
            for row, request in enumerate(batch.requests):
                if request.submit.request == name:
                    self.keep(batch, [other for other in range(len(batch.requests)) if other != row])
                    return request
        return None

    def keep(self, batch: Batch, rows: list[int]) -> None:
        """Drops the other rows, and the batch when none is left."""
        batch.keep(rows)
        if not batch.requests:
            self.batches.remove(batch)

    def _next(self, room: int) -> list[Request]:
        first = self._waiting.popleft()
        if first.alone:
            return [first]
        taken, longest = [first], len(first.so_far)
        for request in list(self._waiting):
            fits = self._pads or len(request.so_far) == longest
            longest_then = max(longest, len(request.so_far))
            full = len(taken) == room or longest_then * (len(taken) + 1) > PREFILL_TOKENS
            if full or (self._pads and request.alone):
                break
            if fits and not request.alone:
                self._waiting.remove(request)
                taken.append(request)
                longest = longest_then
        return taken
