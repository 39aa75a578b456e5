"""Requests on the decoder runner: all that run share each step, those that decode and spans of new prompts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch

from graft_runtime.engine.next_tokens import next_tokens
from graft_runtime.engine.prompts_told import tell_prompt
from graft_runtime.engine.requests import Generation, Request, Result
from graft_runtime.engine.ways import who_gives_room
from graft_runtime.runners.decoder.attention import Piece
from graft_runtime.runners.decoder.past import Past
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.decoder.step import PackedRow

PROMPT_TOKENS = {"cpu": 512, "cuda": 4096}
"""Of all prompts in one step: those that decode wait for it, so it is bounded by the device's speed."""

TOLD_TOKENS = 64
"""Of a prompt in one step whose log-probabilities are asked for: each takes a row of logits."""


@dataclass(eq=False)
class _Running:
    request: Generation
    place: Any
    """Of its keys and values."""
    past: Past
    done: int = 0
    """Tokens that are in the place."""
    kept: bool = False
    """Whether others may read what it has computed: it has answered, so its values are finite."""

    @property
    def missing(self) -> int:
        return self.request.length - self.done

    def row(self, tokens: int) -> PackedRow:
        end = self.done + tokens
        return PackedRow(
            Piece(self.place, self.done, tokens),
            self.request.ids(self.done, end),
            self.request.adapters,
            answers=end == self.request.length,
            all_answer=self.request.tells_prompt,
        )


class PackedTurn:
    """One packed step."""

    def __init__(self, flow: PackedFlow, running: Sequence[_Running]) -> None:
        self._flow = flow
        self._running = running
        self._shares: dict[_Running, int] = {}

    @property
    def requests(self) -> list[Generation]:
        return [running.request for running in self._running]

    def run(self) -> list[Result]:
        self._shares = self._flow.share(self._running)
        runner, rows = self._flow.runner, list(self._shares)
        step = runner.pack([running.row(tokens) for running, tokens in self._shares.items()])
        logits = runner.run(step)
        telling = {index for index in step.answering if rows[index].request.tells_prompt}
        if not telling:
            return next_tokens([rows[index].request for index in step.answering], logits)
        return self._after_prompts([rows[index] for index in step.answering], logits)

    def _after_prompts(self, answering: Sequence[_Running], logits: torch.Tensor) -> list[Result]:
        """Take what is told of prompts out of the logits. Returns what becomes of those that answer."""
        at, choosing = 0, list[int]()
        for running, rows in groupby(answering):
            count = len(list(rows))
            end = running.done + self._shares[running]
            if running.request.tells_prompt:
                tell_prompt(running.request, end - count, logits[at : at + count])
            if end == running.request.length:
                choosing.append(at + count - 1)
            at += count
        return next_tokens([answering[row].request for row in choosing], logits[choosing])

    def settle(self, ended: Sequence[Generation]) -> None:
        for running, tokens in self._shares.items():
            running.done += tokens
            if running.request.tokens and not running.kept:
                running.kept = True
                self._flow.keep(running)
        for request in ended:
            self._flow.leave(request)


class PackedFlow:
    """First come, first served, while there are sequences, bank columns and room for keys and values.

    A sequence that finds no room to grow pushes back the youngest of the adapters that hold most, which starts again
    later from where it was. The oldest always goes on: one sequence of any length fits.

    Args:
        runner: takes the steps through the model.
        max_sequences: that run at once.
        prompt_tokens: of all prompts in one step; None: what suits the device.
    """

    def __init__(self, runner: DecoderRunner, max_sequences: int, prompt_tokens: int | None = None) -> None:
        self.runner = runner
        self._max_sequences = max_sequences
        self._prompt_tokens = prompt_tokens or PROMPT_TOKENS.get(runner.device.type, PROMPT_TOKENS["cuda"])
        self._running: list[_Running] = []

    @property
    def requests(self) -> list[Generation]:
        return [running.request for running in self._running]

    @property
    def reserved(self) -> int:
        return self.runner.kv.reserved

    def make_room(self) -> list[Generation]:
        before, pushed_back = self.requests, set[Request]()
        for running in list(self._running):
            while running in self._running and running.place.capacity < running.request.length:
                larger = self.runner.kv.grow(running.place, running.request.length, running.done)
                if larger is not None:
                    running.place = larger
                else:
                    leaving = who_gives_room([(one.request, one.place.capacity) for one in self._running])
                    self.leave(leaving)
                    pushed_back.add(leaving)
        return [request for request in before if request in pushed_back]

    def start(self, waiting: Sequence[Generation]) -> Sequence[Generation]:
        for count, request in enumerate(waiting):
            if len(self._running) == self._max_sequences or not self._start(request):
                return waiting[:count]
        return waiting

    def turns(self) -> list[PackedTurn]:
        together = [running for running in self._running if not running.request.alone]
        alone = [[running] for running in self._running if running.request.alone]
        return [PackedTurn(self, running) for running in [together, *alone] if running]

    def leave(self, request: Request) -> None:
        running = next(running for running in self._running if running.request is request)
        self._running.remove(running)
        if running.kept:
            self.keep(running)
        self.runner.kv.release(running.place)
        self.runner.bank.release(request.adapters)

    def keep(self, running: _Running) -> None:
        """Keep what a sequence has computed for those that begin with the same."""
        if self.runner.kv.block:
            self.runner.kv.keep(running.place, running.past.blocks(running.done))

    def share(self, running: Sequence[_Running]) -> dict[_Running, int]:
        """Return how many tokens each request takes through the model in one step.

        One each for those that decode. Prompts share what is left: half of it is the oldest's, so that a long prompt
        gets on; then the shortest go first, so that a short one need not wait for it.
        """
        shares = {one: 1 for one in running if one.missing == 1}
        prompts = [one for one in running if one.missing > 1]
        room = self._prompt_tokens
        if prompts:
            most = TOLD_TOKENS if prompts[0].request.tells_prompt else room // 2
            shares[prompts[0]] = min(prompts[0].missing, most, room // 2)
            room -= shares[prompts[0]]
        for one in sorted(prompts[1:], key=lambda one: one.missing) + prompts[:1]:
            more = min(one.missing - shares.get(one, 0), room)
            if one.request.tells_prompt:
                more = min(more, TOLD_TOKENS - shares.get(one, 0))
            if more:
                shares[one] = shares.get(one, 0) + more
                room -= more
        return shares

    def _start(self, request: Generation) -> bool:
        if not self.runner.bank.hold(request.adapters):
            return False
        past = self._past(request)
        # the last token is computed: its logits are what is asked for, or those of all
        known = past.blocks(0 if request.tells_prompt else request.length - 1)
        place = self.runner.kv.reserve(min(request.length + 1, self.runner.context_length), known)
        if place is None:
            self.runner.bank.release(request.adapters)
            return False
        done = max(place.known, self.runner.begin(place, request.adapters))
        self._running.append(_Running(request, place, past, done))
        if not request.tokens:
            request.known = place.known
        return True

    def _past(self, request: Generation) -> Past:
        """Return what blocks of a request are known by; of one with virtual tokens none is."""
        served = zip(request.message.adapters, request.adapters, strict=True)
        adapters = [(asked.digest, part.weight, part.start) for asked, part in served]
        block = self.runner.kv.block if not request.virtual else 0
        return Past(block, request.message.salt, adapters, request.ids)
