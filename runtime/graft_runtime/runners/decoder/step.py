"""One pass through a decoder, as a value: what is packed is a row of tokens, whichever sequences they are of."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass

import torch

from graft_runtime.model.rows import AdapterInputs, RowAdapter
from graft_runtime.runners.decoder.attention import Arrangement, Piece


@dataclass(frozen=True, eq=False)
class PackedRow:
    """Some tokens of one sequence: one that decodes, or a span of its prompt."""

    piece: Piece
    ids: Sequence[int]
    adapters: tuple[RowAdapter, ...]
    answers: bool
    """Whether the logits after its last token are wanted."""
    all_answer: bool = False
    """Whether those after each of its tokens are wanted."""


@dataclass(frozen=True, eq=False)
class Step:
    """All that a pass reads from the device, beside weights, adapters, keys and values.

    Its tensors are buffers of the runner that packed it, each at the address that it had in earlier steps of this size:
    the next step overwrites them.

    Attributes:
        ids: [1, tokens], int64.
        positions: [1, tokens], int64.
        last: [answers], int64: the last token of each row that answers, or each where all answer.
        arrangement: where keys and values are written and what is read.
        adapters: slots, weights and owners of the active adapters; None for a step of the base's rows alone.
        answering: whose logits are wanted, in the order of the logits, by their index in what was packed: once for each
            token.
        shape: of a static step: all that a pass over its tensors depends on, beside what they hold.
    """

    ids: torch.Tensor
    positions: torch.Tensor
    last: torch.Tensor
    arrangement: Arrangement
    adapters: AdapterInputs | None
    answering: Sequence[int]
    shape: Hashable = None
