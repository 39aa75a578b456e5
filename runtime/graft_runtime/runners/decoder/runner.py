"""Fills steps and takes them through the model, which calls our attention; everything else is Transformers' code."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any

import torch

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.buffers import Buffers
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import Row, RowAdapter
from graft_runtime.runners.decoder.attention import Attention, Piece, attending, attends
from graft_runtime.runners.decoder.captured import CAPTURED_AT, CapturedSteps
from graft_runtime.runners.decoder.places import Places
from graft_runtime.runners.decoder.static import StaticRooms
from graft_runtime.runners.decoder.step import PackedRow, Step
from graft_runtime.runners.runner import Runner

NAME = "decoder"


class DecoderRunner(Runner):
    """Takes packed steps through the model.

    Args:
        base: set to our attention by the probe.
        modules: the adapters' hooks on it.
        places: where sequences live.
        static: which steps are static; None: none is.
        graphs: bytes that CUDA graphs may take.
    """

    name = NAME

    def __init__(
        self,
        base: BaseModel,
        modules: AdapterModules,
        places: Places,
        static: StaticRooms | None = None,
        graphs: int = 0,
    ) -> None:
        super().__init__(base, modules)
        self._limits_head = "logits_to_keep" in self._parameters
        self._buffers = Buffers(base.device)
        self._attention = places.attention
        self.static = static
        """Which steps of rows that decode are static; None: none is."""
        self.captured: CapturedSteps | None = None
        """Where static steps are captured."""
        if static is not None and base.device.type == "cuda":
            self.captured = CapturedSteps(self._forward, static.sizes[0], base.device, graphs)
        self.kv = places.kv

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

    @torch.inference_mode()
    def warm(self) -> None:
        """Take static steps of the base through the model, so that the first requests don't wait for graphs."""
        if self.static is not None:
            for rows in self.static.sizes:
                for _ in range(CAPTURED_AT):
                    self.run(self.pack(self.static.padding(rows)))

    def pack(self, rows: Sequence[PackedRow]) -> Step:
        """Fill a step with these rows, each of its own sequence. The step before it is spent."""
        room = self.static.room(rows) if self.static is not None else None
        if self.static is None or room is None:
            return self._packed(rows, self._buffers, self._attention)
        step = self._packed([*rows, *self.static.padding(room.rows - len(rows))], room.buffers, room.attention)
        return replace(step, answering=range(len(rows)), shape=self.static.shape(room, step))

    def _packed(self, rows: Sequence[PackedRow], buffers: Buffers, attention: Attention) -> Step:
        arrangement = attention.arrange([row.piece for row in rows])
        ordered = [rows[index] for index in arrangement.order]
        ends = list(accumulate(row.piece.tokens for row in ordered))
        wanted = [row.piece.tokens if row.all_answer else int(row.answers) for row in ordered]
        places = [at for end, count in zip(ends, wanted, strict=True) for at in range(end - count, end)]
        last = buffers.fill("last", places)
        positions = [at for row in ordered for at in range(row.piece.start, row.piece.end)]
        return Step(
            buffers.fill("ids", [token for row in ordered for token in row.ids])[None],
            buffers.fill("positions", positions)[None],
            last,
            arrangement,
            self.bank.inputs([Row(row.adapters, row.piece.start, row.piece.tokens) for row in ordered], last, buffers),
            [index for index, count in zip(arrangement.order, wanted, strict=True) for _ in range(count)],
        )

    def run(self, step: Step) -> torch.Tensor:
        """Return the logits of the rows that answer, [answers, vocabulary]; keys and values of all tokens are kept.

        The next step may overwrite the logits.
        """
        run = self._forward if self.captured is None or step.shape is None else self.captured.run
        return run(step)[: len(step.answering)]

    def _forward(self, step: Step) -> torch.Tensor:
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
