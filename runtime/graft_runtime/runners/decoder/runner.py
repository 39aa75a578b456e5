"""Fills steps and takes them through the model, which calls our attention; everything else is Transformers' code."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import torch

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.buffers import Buffers
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import Row, RowAdapter
from graft_runtime.runners.decoder.attention import Attention, KeysAndValues, Piece, attending, attends
from graft_runtime.runners.decoder.step import PackedRow, Step
from graft_runtime.runners.runner import Runner

NAME = "decoder"


class DecoderRunner(Runner):
    """Takes packed steps through the model.

    Args:
        base: set to our attention by the probe.
        modules: the adapters' hooks on it.
        kv: where sequences live.
        attention: over the places of `kv`.
    """

    name = NAME

    def __init__(self, base: BaseModel, modules: AdapterModules, kv: KeysAndValues, attention: Attention) -> None:
        super().__init__(base, modules)
        self._limits_head = "logits_to_keep" in self._parameters
        self._buffers = Buffers(base.device)
        self._attention = attention
        self.kv = kv

    @property
    def context_length(self) -> int:
        """Return the length in tokens of the longest sequence that can run."""
        return self.kv.longest

    def begin(self, place: Any, adapters: Sequence[RowAdapter]) -> int:
        """Write what a sequence has before its first token. Returns how many positions that takes."""
        prefixes = [part.adapter.prefix for part in adapters if part.adapter.prefix is not None]
        for prefix in prefixes:
            self.kv.fill(place, prefix)
        return sum(prefix.tokens for prefix in prefixes)

    def pack(self, rows: Sequence[PackedRow]) -> Step:
        """Fill a step with these rows, each of its own sequence. The step before it is spent."""
        arrangement = self._attention.arrange([row.piece for row in rows])
        ordered = [rows[index] for index in arrangement.order]
        ends = accumulate(row.piece.tokens for row in ordered)
        last = self._buffers.fill("last", [end - 1 for end, row in zip(ends, ordered, strict=True) if row.answers])
        positions = [at for row in ordered for at in range(row.piece.start, row.piece.end)]
        return Step(
            self._buffers.fill("ids", [token for row in ordered for token in row.ids])[None],
            self._buffers.fill("positions", positions)[None],
            last,
            arrangement,
            self.bank.inputs([Row(row.adapters, row.piece.start, row.piece.tokens) for row in ordered], last),
            [index for index in arrangement.order if rows[index].answers],
        )

    def run(self, step: Step) -> torch.Tensor:
        """Return the logits of the rows that answer, [answers, vocabulary]; keys and values of all tokens are kept."""
        options: dict[str, Any] = {"logits_to_keep": step.last} if self._limits_head else {}
        with self._modules.active(step.adapters), attending(attends(step.arrangement)):
            made = self._base.model(
                input_ids=step.ids, position_ids=step.positions, use_cache=False, return_dict=True, **options
            )
        logits: torch.Tensor = made.logits[0]
        return logits if self._limits_head else logits[step.last]

    def logits_of(self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
        kv = self.kv.beside([len(prompt) for prompt in prompts])
        rows = []
        for prompt, row_adapters in zip(prompts, adapters, strict=True):
            place = kv.reserve(len(prompt))
            if place is None:
                raise GraftError(ErrorCode.NO_CAPACITY, "the device has no memory left for keys and values of a trial")
            done = self.begin(place, row_adapters)
            rows.append(PackedRow(Piece(place, done, len(prompt) - done), prompt[done:], row_adapters, answers=True))
        step = self.pack(rows)
        logits = self.run(step)
        order = torch.tensor(step.answering, device=self.device).argsort()
        return logits[order]
