"""The `decoder` runner: rows of many sequences packed into one forward pass, with keys and values of our own.

Transformers' models call our attention (`AttentionInterface`); everything else is their code. Which models may be
served like this is for the probe to say.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import Row, RowAdapter
from graft_runtime.runners.attention import Layout, Piece, attending
from graft_runtime.runners.kv import SMALLEST_EXTENT, Extent, KeyValueStore, LayerShape, fill
from graft_runtime.runners.runner import Runner

NAME = "decoder"


@dataclass(frozen=True)
class Family:
    """What attention needs to know of a model.

    Attributes:
        layers: what each keeps of a token.
        windows: how many tokens each sees, its own included; None: all.
    """

    layers: tuple[LayerShape, ...]
    windows: tuple[int | None, ...]


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Some tokens of one sequence: one that decodes, or a span of its prompt."""

    piece: Piece
    ids: Sequence[int]
    adapters: tuple[RowAdapter, ...]
    answers: bool
    """Whether the logits after its last token are wanted."""


class PackedStep:
    """Rows that go through the model in one pass."""

    def __init__(self, rows: Sequence[PackedRow], windows: Sequence[int | None], device: torch.device) -> None:
        decoding = [row for row in rows if row.piece.tokens == 1]
        decoding.sort(key=lambda row: (row.piece.extent.slab.capacity, row.piece.extent.slot))
        spans = [row for row in rows if row.piece.tokens > 1]
        self.rows = [*decoding, *spans]
        """In the order of their tokens."""
        self.ids = torch.tensor([[token for row in self.rows for token in row.ids]], device=device)
        """[1, tokens]."""
        positions = [at for row in self.rows for at in range(row.piece.start, row.piece.end)]
        self.positions = torch.tensor([positions], device=device)
        self.layout = Layout([row.piece for row in decoding], [row.piece for row in spans], windows, device)
        ends = torch.tensor([row.piece.tokens for row in self.rows]).cumsum(0) - 1
        wanted = torch.tensor([row.answers for row in self.rows])
        self.last = ends[wanted].to(device)
        """[answers]: the last token of each row that answers."""

    @property
    def answering(self) -> list[PackedRow]:
        """In the order of the logits."""
        return [row for row in self.rows if row.answers]


class DecoderRunner(Runner):
    """Takes packed steps through the model.

    Args:
        base: set to our attention by the probe.
        modules: the adapters' hooks on it.
        family: what the probe found.
        kv: where sequences live.

    Attributes:
        family: as above.
    """

    name = NAME

    def __init__(self, base: BaseModel, modules: AdapterModules, family: Family, kv: KeyValueStore) -> None:
        super().__init__(base, modules)
        self.family = family
        self._limits_head = "logits_to_keep" in self._parameters
        self.kv = kv

    @property
    def context_length(self) -> int:
        """Tokens of the longest sequence that can run."""
        return self.kv.longest

    def begin(self, extent: Extent, adapters: Sequence[RowAdapter]) -> int:
        """Writes what a sequence has before its first token. Returns how many positions that takes."""
        prefixes = [part.adapter.prefix for part in adapters if part.adapter.prefix is not None]
        for prefix in prefixes:
            fill(extent, prefix)
        return sum(prefix.tokens for prefix in prefixes)

    def pack(self, rows: Sequence[PackedRow]) -> PackedStep:
        """A step of these rows, each of its own sequence; computes nothing yet."""
        return PackedStep(rows, self.family.windows, self._base.device)

    def forward(self, step: PackedStep) -> torch.Tensor:
        """The logits of the rows that answer, [answers, vocabulary]; every row's tokens are in its extent then."""
        rows = [Row(row.adapters, row.piece.start, row.piece.tokens) for row in step.rows]
        options: dict[str, Any] = {"logits_to_keep": step.last} if self._limits_head else {}
        with self._modules.active(rows, step.last), attending(step.layout.attend):
            made = self._base.model(
                input_ids=step.ids, position_ids=step.positions, use_cache=False, return_dict=True, **options
            )
        logits: torch.Tensor = made.logits[0]
        return logits if self._limits_head else logits[step.last]

    def logits_of(self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
        kv = scratch(self._base, self.family, [max(SMALLEST_EXTENT, len(prompt)) for prompt in prompts])
        rows = []
        for prompt, row_adapters in zip(prompts, adapters, strict=True):
            extent = kv.reserve(len(prompt))
            assert extent is not None
            done = self.begin(extent, row_adapters)
            piece = Piece(extent, done, len(prompt) - done)
            rows.append(PackedRow(piece, prompt[done:], row_adapters, answers=True))
        return self.forward(self.pack(rows))


def scratch(base: BaseModel, family: Family, lengths: Sequence[int]) -> KeyValueStore:
    """Room for sequences of these lengths, beside what requests use."""
    tokens = sum(max(length, SMALLEST_EXTENT) for length in lengths)
    return KeyValueStore(family.layers, tokens=tokens, longest=max(lengths), dtype=base.dtype, device=base.device)
