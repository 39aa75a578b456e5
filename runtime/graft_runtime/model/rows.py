"""Rows of a step: which adapters each has, and what its tokens take of the bank."""

from __future__ import annotations

import math
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
        runs: [n, 5], float64, on the host: first token, tokens, first column, columns, weight. What the tokens take of
            the columns once more, without those that they don't take; None: not told.
    """

    hidden: torch.Tensor | None
    column_weights: torch.Tensor | None
    slots: torch.Tensor
    slot_weights: torch.Tensor
    positions: torch.Tensor
    runs: torch.Tensor | None = None

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
        self.rows = len(tokens)
        self._width = tokens[0] if len(set(tokens)) == 1 else None
        """Of the rows, if they are all of one length."""
        self._uniform = uniform
        self._others: dict[tuple[tuple[int, ...], bool], TokenAdapters] = {}

    def of(self, shape: tuple[int, ...], path: str, *, head: bool = False, tokens_first: bool = False) -> TokenAdapters:
        """Return what the tokens of a module's input take.

        Args:
            shape: of the input without its features.
            path: of the module.
            head: whether it is the head.
            tokens_first: whether the input is [tokens, rows, ·], and not [rows, tokens, ·].

        Raises:
            GraftError: UnsupportedMethod when the model hands the module tokens that can't be told apart.
        """
        count = math.prod(shape)
        if head and count == self.last.slots.shape[0]:
            return self.last
        if count == self.all.slots.shape[0] and (self._uniform or not tokens_first or shape[0] == 1):
            return self.all
        if (shape, tokens_first) not in self._others:
            self._others[shape, tokens_first] = self.all.of(self._tokens(shape, count, path, tokens_first=tokens_first))
        return self._others[shape, tokens_first]

    def _tokens(self, shape: tuple[int, ...], count: int, path: str, *, tokens_first: bool) -> torch.Tensor:
        """Return which token of the pass each of a module's stands for, [count].

        What a row has beyond its tokens is its own, as what it attends to, a sum or the padding of its windows: it
        stands for the row's last token.
        """
        device = self.all.slots.device
        if self._uniform:
            return torch.zeros(count, dtype=torch.long, device=device)
        at = 1 if tokens_first else 0
        if self._width is None or shape[at : at + 1] != (self.rows,):
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"the model hands `{path}` {count} tokens of {self.all.slots.shape[0]}",
                hint="train the adapter without the modules that see only some tokens, as experts do",
            )
        rows = torch.arange(self.rows, device=device) * self._width
        own = torch.arange(count // self.rows, device=device).clamp(max=self._width - 1)
        if count != self.all.slots.shape[0]:
            own = own.fill_(self._width - 1)
        return (own[:, None] + rows if tokens_first else rows[:, None] + own).flatten()
