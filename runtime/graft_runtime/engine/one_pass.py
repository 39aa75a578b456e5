"""Requests on the encoder runner: one pass, and each has its answer."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.engine.requests import Encoding, Result, not_finite
from graft_runtime.messages import Encoded
from graft_runtime.runners.encoder import EncoderRow, EncoderRunner

PASS_TOKENS = 16_384
"""Of the rows that start together, padding included; a longer one runs by itself."""


class OnePass:
    """Rows that go through the model together."""

    def __init__(self, flow: OnePassFlow, requests: Sequence[Encoding]) -> None:
        self._flow = flow
        self.requests = requests

    def run(self) -> list[Result]:
        """Encode each row."""
        rows = [_row(one) for one in self.requests]
        outputs = self._flow.runner.run(rows)
        return [_result(request, output) for request, output in zip(self.requests, outputs, strict=True)]

    def settle(self, ended: Sequence[Encoding]) -> None:
        """Let the ended requests leave: all of the turn's requests are ended after one pass."""
        for request in ended:
            self._flow.leave(request)


class OnePassFlow:
    """First come, first served, up to `max_sequences` rows and PASS_TOKENS at once, while the bank has room.

    Args:
        runner: takes the rows through the model.
        max_sequences: that run at once.
    """

    reserved = 0

    def __init__(self, runner: EncoderRunner, max_sequences: int) -> None:
        self.runner = runner
        self._max_sequences = max_sequences
        self.requests: list[Encoding] = []

    def make_room(self) -> list[Encoding]:
        return []  # nothing grows

    def start(self, waiting: Sequence[Encoding]) -> Sequence[Encoding]:
        for count, request in enumerate(waiting):
            rows = [*self.requests, request]
            padded = len(rows) * max(len(one.message.ids) for one in rows)
            full = len(rows) > self._max_sequences or (padded > PASS_TOKENS and len(rows) > 1)
            if full or not self.runner.bank.hold(request.adapters):
                return waiting[:count]
            self.requests.append(request)
        return waiting

    def turns(self) -> list[OnePass]:
        together = [request for request in self.requests if not request.alone]
        alone = [[request] for request in self.requests if request.alone]
        return [OnePass(self, requests) for requests in [together, *alone] if requests]

    def leave(self, request: Encoding) -> None:
        self.requests.remove(request)
        self.runner.bank.release(request.adapters)


def _row(request: Encoding) -> EncoderRow:
    message = request.message
    return EncoderRow(message.ids, request.adapters, message.types, message.pooled)


def _result(request: Encoding, output: torch.Tensor) -> Result:
    if not bool(torch.isfinite(output).all()):
        return not_finite(request)
    values = output.float().flatten().tolist()
    return Result(request, Encoded(request.name, tuple(output.shape), values), ends=True)
