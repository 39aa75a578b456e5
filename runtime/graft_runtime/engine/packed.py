"""Requests on the decoder runner: all that run share each step, those that decode and spans of new prompts."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft_runtime.engine.requests import Request
from graft_runtime.runners.attention import Piece
from graft_runtime.runners.decoder import DecoderRunner, PackedRow
from graft_runtime.runners.kv import Extent

PROMPT_TOKENS = {"cpu": 512, "cuda": 4096}
"""Of all prompts in one step: those that decode wait for it, so it is bounded by the device's speed."""


@dataclass(eq=False)
class _Running:
    request: Request
    extent: Extent
    done: int = 0
    """Tokens that are in the extent."""

    @property
    def missing(self) -> int:
        return self.request.length - self.done


class PackedTurn:
    """One packed step."""

    def __init__(self, flow: PackedFlow, running: Sequence[_Running]) -> None:
        self._flow = flow
        self._running = running
        self._taken: dict[_Running, int] = {}

    @property
    def requests(self) -> list[Request]:
        return [running.request for running in self._running]

    def forward(self) -> tuple[list[Request], torch.Tensor]:
        self._taken = self._flow.share(self._running)
        rows = {_row(running, tokens): running.request for running, tokens in self._taken.items()}
        step = self._flow.runner.pack(list(rows))
        logits = self._flow.runner.forward(step)
        return [rows[row] for row in step.answering], logits

    def settle(self, ended: Sequence[Request]) -> None:
        for running, tokens in self._taken.items():
            running.done += tokens
        for request in ended:
            self._flow.leave(request)


def _row(running: _Running, tokens: int) -> PackedRow:
    end = running.done + tokens
    return PackedRow(
        Piece(running.extent, running.done, tokens),
        running.request.ids(running.done, end),
        running.request.adapters,
        answers=end == running.request.length,
    )


class PackedFlow:
    """First come, first served, while there are sequences, bank columns and room for keys and values.

    A sequence that finds no room to grow pushes back the youngest, which starts again later from where it was. The
    oldest always goes on: one sequence of any length fits.
    """

    def __init__(self, runner: DecoderRunner, max_sequences: int) -> None:
        self.runner = runner
        self._max_sequences = max_sequences
        self._prompt_tokens = PROMPT_TOKENS.get(runner.device.type, PROMPT_TOKENS["cuda"])
        self._running: list[_Running] = []

    @property
    def requests(self) -> list[Request]:
        return [running.request for running in self._running]

    @property
    def reserved(self) -> int:
        return self.runner.kv.reserved

    def admit(self, waiting: deque[Request]) -> None:
        self._grow(waiting)
        while waiting and len(self._running) < self._max_sequences and self._start(waiting[0]):
            waiting.popleft()

    def turns(self) -> list[PackedTurn]:
        together = [running for running in self._running if not running.request.alone]
        alone = [[running] for running in self._running if running.request.alone]
        return [PackedTurn(self, running) for running in [together, *alone] if running]

    def leave(self, request: Request) -> None:
        running = next(running for running in self._running if running.request is request)
        self._running.remove(running)
        self.runner.kv.release(running.extent)
        self.runner.bank.release(request.adapters)

    def share(self, running: Sequence[_Running]) -> dict[_Running, int]:
        """How many tokens each takes through the model in one step.

        One each for those that decode. Prompts share what is left: half of it is the oldest's, so that a long prompt
        gets on; then the shortest go first, so that a short one need not wait for it.
        """
        taken = {one: 1 for one in running if one.missing == 1}
        prompts = [one for one in running if one.missing > 1]
        room = self._prompt_tokens
        if prompts:
            taken[prompts[0]] = min(prompts[0].missing, room // 2)
            room -= taken[prompts[0]]
        for one in sorted(prompts[1:], key=lambda one: one.missing) + prompts[:1]:
            more = min(one.missing - taken.get(one, 0), room)
            if more:
                taken[one] = taken.get(one, 0) + more
                room -= more
        return taken

    def _start(self, request: Request) -> bool:
        if not self.runner.bank.hold(request.adapters):
            return False
        extent = self.runner.kv.reserve(min(request.length + 1, self.runner.context_length))
        if extent is None:
            self.runner.bank.release(request.adapters)
            return False
        self._running.append(_Running(request, extent, self.runner.begin(extent, request.adapters)))
        return True

    def _grow(self, waiting: deque[Request]) -> None:
        for running in list(self._running):
            while running in self._running and running.extent.capacity < running.request.length:
                larger = self.runner.kv.grow(running.extent, running.request.length, running.done)
                if larger is not None:
                    running.extent = larger
                else:
                    youngest = self._running[-1].request
                    self.leave(youngest)
                    waiting.appendleft(youngest)
