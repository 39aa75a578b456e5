"""Rows of a step: which adapters each has, and what its tokens take of the bank."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.errors import ErrorCode, GraftError


@dataclass(frozen=True)
class RowAdapter:
    """One adapter of one row, and how much of it.

    Attributes:
        start: the position of the first token that it takes part in.
    """

    adapter: CompiledAdapter
    weight: float
    start: int = 0


@dataclass(frozen=True)
class Row:
    """The tokens of one row in a pass through the model.

    Attributes:
        adapters: of the row; the bank holds them.
        start: the position of the first of the tokens; negative for padding before the first.
        tokens: how many.
    """

    adapters: tuple[RowAdapter, ...]
    start: int
    tokens: int


def virtual_tokens(adapters: Sequence[RowAdapter]) -> int:
    """Count the positions that these adapters take before the first token of a row's prompt."""
    return sum(part.adapter.facts.virtual_tokens for part in adapters)


@dataclass(frozen=True)
class TokenAdapters:
    """What each token takes of the active adapters.

    Attributes:
        hidden: [tokens, width], bool: the columns that a token takes nothing of; None: every token takes all of them.
        column_weights: [tokens, width]; None: 1 wherever they are not hidden.
        slots: [tokens], int64: of the adapter that has vectors; 0: none.
        slot_weights: [tokens, slots].
        positions: [tokens], int64; negative for padding.
    """

    hidden: torch.Tensor | None
    column_weights: torch.Tensor | None
    slots: torch.Tensor
    slot_weights: torch.Tensor
    positions: torch.Tensor

    def of(self, tokens: torch.Tensor) -> TokenAdapters:
        """Return what these tokens take; `tokens` is [n]."""
        return TokenAdapters(
            None if self.hidden is None else self.hidden[tokens],
            None if self.column_weights is None else self.column_weights[tokens],
            self.slots[tokens],
            self.slot_weights[tokens],
            self.positions[tokens],
        )

    def each(self, times: int) -> TokenAdapters:
        """Repeat every token this many times in a row."""
        return self.of(torch.arange(self.slots.shape[0], device=self.slots.device).repeat_interleave(times))


class AdapterInputs:
    """What the modules read of a pass, beside their inputs: which adapters its tokens take, and how much of each.

    Args:
        taken: by all tokens of the pass, in order.
        tokens: of each row; together all of them.
        last: the tokens that the head computes if it is limited, as indices of all tokens.
        uniform: whether every token takes the same.
    """

    def __init__(self, taken: TokenAdapters, tokens: Sequence[int], last: torch.Tensor, *, uniform: bool) -> None:
        self.all = taken
        self.last = taken if len(last) == taken.slots.shape[0] else taken.of(last)
        self._rows = len(tokens)
        self._even = len(set(tokens)) == 1
        self._uniform = uniform
        self._others: dict[int, TokenAdapters] = {}

    def of(self, count: int, leading: int, *, head: bool = False) -> TokenAdapters:
        """Return what the tokens of a module's input take.

        Args:
            count: of its tokens.
            leading: its first dimension.
            head: whether it is the head.

        Raises:
            GraftError: UnsupportedMethod when the model hands the module tokens that can't be told apart.
        """
        if head and count == self.last.slots.shape[0]:
            return self.last
        if count == self.all.slots.shape[0]:
            return self.all
        if count not in self._others:
            self._others[count] = self._other(count, leading)
        return self._others[count]

    def _other(self, count: int, leading: int) -> TokenAdapters:
        device = self.all.slots.device
        if self._uniform:
            return self.all.of(torch.zeros(count, dtype=torch.long, device=device))
        if self._even and leading == self._rows and count % self._rows == 0:  # a row's own: what it attends to, a sum
            width = self.all.slots.shape[0] // self._rows
            return self.all.of(torch.arange(self._rows, device=device) * width + width - 1).each(count // self._rows)
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"the model hands one of its modules {count} tokens of {self.all.slots.shape[0]}",
            hint="train the adapter without the modules that see only some tokens, as experts do",
        )
