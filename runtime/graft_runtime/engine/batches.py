"""Requests on the padded runner: they start in batches, which join and shrink."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol

import torch

from graft_runtime.engine.next_tokens import next_tokens
from graft_runtime.engine.requests import Generation, Result
from graft_runtime.model.bank import Bank
from graft_runtime.runners.together import MakesBatches, Sharing

MAX_BATCHES = 8
"""Batches that run side by side: a request that comes while others decode starts one, and joins another later."""
PADDING_ALLOWED = 4096
"""Tokens of padding that joining two batches may cost, beside as many again as both hold."""
PREFILL_TOKENS = 16_384
"""Of one batch, padding included; a longer prompt runs in a batch of its own."""


class BatchState(Protocol):
    """What a runner keeps of rows that go through the model together."""

    @property
    def length(self) -> int:
        """Return how many tokens the longest row has."""
        ...

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these."""
        ...

    def join(self, other: Any) -> None:
        """Take in the rows of another state of the same runner, after the state's own; the other state is spent."""
        ...

    def extend(self, tokens: Sequence[int]) -> None:
        """Take the next input: one token for each row."""
        ...


class BatchRunner(MakesBatches, Protocol):
    """A runner that takes batches through the model.

    Attributes:
        bank: the adapters' columns.
        together: which rows may share a batch.
    """

    bank: Bank
    together: Sharing

    def run(self, batch: Any) -> torch.Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]."""
        ...


class Batch:
    """Requests that run together; the state of the runner exists from the first step on."""

    def __init__(self, flow: BatchFlow, requests: list[Generation]) -> None:
        self._flow = flow
        self._joining: list[BatchState] = []
        self.requests = requests
        self.state: BatchState | None = None

    def run(self) -> list[Result]:
        """Give every request its next token."""
        if self.state is None:
            prompts = [request.ids(0, request.length - len(request.tokens)) for request in self.requests]
            answers = [request.tokens for request in self.requests]
            self.state = self._flow.runner.start(prompts, answers, [request.adapters for request in self.requests])
        while self._joining:
            self.state.join(self._joining.pop())
        return next_tokens(self.requests, self._flow.runner.run(self.state))

    def settle(self, ended: Sequence[Generation]) -> None:
        """Let the ended requests leave; the new tokens of the others are the next input."""
        for request in ended:
            self._flow.leave(request)
        if self.requests and self.state is not None:
            self.state.extend([request.tokens[-1] for request in self.requests])

    def take_in(self, other: Batch) -> None:
        """Take in the other batch's rows, with the next step."""
        assert other.state is not None
        self._joining.append(other.state)
        self.requests = self.requests + other.requests

    def drop(self, request: Generation) -> None:
        """Take out the row of this request."""
        rows = [row for row, other in enumerate(self.requests) if other is not request]
        self.requests = [self.requests[row] for row in rows]
        if self.state is not None and rows and not self._joining:
            self.state.keep(rows)

    @property
    def reserved(self) -> int:
        """Return how many tokens the cache holds, padding included."""
        return 0 if self.state is None else len(self.requests) * self.state.length

    @property
    def fits_others(self) -> bool:
        """Tell whether the batch runs already, is not about to take in another, and has no row that must be alone."""
        return self.state is not None and not self._joining and not any(request.alone for request in self.requests)

    def cheap_with(self, other: Batch) -> bool:
        """Tell whether taking the other batch in does not cost too much padding."""
        assert self.state is not None
        assert other.state is not None
        lengths, rows = (self.state.length, other.state.length), (len(self.requests), len(other.requests))
        held = sum(length * count for length, count in zip(lengths, rows, strict=True))
        return sum(rows) * max(lengths) <= 2 * held + PADDING_ALLOWED


class BatchFlow:
    """First come, first served, up to `max_sequences` rows in up to MAX_BATCHES batches, while the bank has room."""

    def __init__(self, runner: BatchRunner, max_sequences: int) -> None:
        self.runner = runner
        self._max_sequences = max_sequences
        self.batches: list[Batch] = []

    @property
    def requests(self) -> list[Generation]:
        return [request for batch in self.batches for request in batch.requests]

    @property
    def reserved(self) -> int:
        return sum(batch.reserved for batch in self.batches)

    def make_room(self) -> list[Generation]:
        return []  # caches grow by themselves

    def start(self, waiting: Sequence[Generation]) -> list[Generation]:
        rest, started = list(waiting), list[Generation]()
        while rest and len(self.batches) < MAX_BATCHES and len(self.requests) < self._max_sequences:
            if not self._hold(rest[0]):
                break
            self.batches.append(Batch(self, self._next(rest, self._max_sequences - len(self.requests))))
            started += self.batches[-1].requests
            rest = [request for request in rest if request not in started]
        return started

    def turns(self) -> list[Batch]:
        if self.runner.together.joins:
            self._join()
        return list(self.batches)

    def leave(self, request: Generation) -> None:
        batch = next(batch for batch in self.batches if request in batch.requests)
        batch.drop(request)
        if not batch.requests:
            self.batches.remove(batch)
        self.runner.bank.release(request.adapters)

    def _hold(self, request: Generation) -> bool:
        return self.runner.bank.hold(request.adapters)

    def _join(self) -> None:
        """Join the batches that had better run as one, two at a time."""
        for first in list(self.batches):
            for second in list(self.batches):
                both = first in self.batches and first is not second and first.fits_others and second.fits_others
                if both and first.cheap_with(second):
                    self.batches.remove(second)
                    first.take_in(second)

    def _next(self, waiting: Sequence[Generation], room: int) -> list[Generation]:
        """Return the requests of the next batch.

        The bank holds the adapters of the first of `waiting` before the call, and of the whole batch after the call.
        """
        first, *others = waiting
        if first.alone:
            return [first]
        taken, longest = [first], first.length
        for request in others:
            longest_then = max(longest, request.length)
            full = len(taken) == room or longest_then * (len(taken) + 1) > PREFILL_TOKENS
            if full:
                break
            rows = [(one.length, one.adapters) for one in (*taken, request)]
            if request.alone or not self.runner.shares(rows):
                continue
            if not self._hold(request):
                break
            taken.append(request)
            longest = longest_then
        return taken
