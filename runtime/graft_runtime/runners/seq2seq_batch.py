"""The rows of a sequence-to-sequence model that run together: they leave, and those of others join."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import EncoderDecoderCache

from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.caches import cut_left, cut_right, join, join_right


class Seq2SeqBatch:
    """Rows that go through the decoder together, one token a forward pass after the first.

    Args:
        prompt: [rows, prompt tokens], padded on the right.
        prompt_mask: [rows, prompt tokens].
        ids: [rows, tokens]: the decoder's first input, padded on the left.
        mask: [rows, tokens].
        adapters: of each row.
    """

    def __init__(
        self,
        prompt: torch.Tensor,
        prompt_mask: torch.Tensor,
        ids: torch.Tensor,
        mask: torch.Tensor,
        adapters: Sequence[tuple[RowAdapter, ...]],
    ) -> None:
        self.prompt = prompt
        """Meaningless once it is encoded."""
        self.prompt_mask = prompt_mask
        self.ids, self.mask = ids, mask
        self.adapters = list(adapters)
        self.states: torch.Tensor | None = None
        """[rows, prompt tokens, hidden]: what the encoder made of the prompts, once it has."""
        self.cache: EncoderDecoderCache | None = None

    @property
    def length(self) -> int:
        """Return the sum of the tokens of the longest prompt and of the longest answer."""
        return self.prompt_mask.shape[1] + self.mask.shape[1]

    @property
    def padding(self) -> torch.Tensor:
        """Return how many tokens of padding each answer has, [rows]."""
        return (1 - self.mask).sum(dim=1)

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these; the memory of the others is free."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids, self.mask = self.ids[index], self.mask[index]
        self.adapters = [self.adapters[row] for row in rows]
        longest = int(self.prompt_mask[index].sum(dim=1).max())
        self.prompt_mask = self.prompt_mask[index, :longest]
        if self.states is None:
            self.prompt = self.prompt[index, :longest]
        else:
            self.states = self.states[index, :longest]
        if self.cache is not None:
            self.cache.reorder_cache(index)
            cut_right(self.cache.cross_attention_cache, longest)
            padding = int(self.padding.min())
            cut_left(self.cache.self_attention_cache, padding)
            self.mask = self.mask[:, padding:]

    def join(self, other: Seq2SeqBatch) -> None:
        """Add another batch's rows after this one's; both batches have been through the model. The other is spent."""
        assert self.states is not None
        assert other.states is not None
        assert self.cache is not None
        assert other.cache is not None
        prompt = max(self.states.shape[1], other.states.shape[1])
        answer = max(self.mask.shape[1], other.mask.shape[1])
        self.states = torch.cat(
            [functional.pad(states, (0, 0, 0, prompt - states.shape[1])) for states in (self.states, other.states)]
        )
        self.prompt_mask = torch.cat(
            [functional.pad(mask, (0, prompt - mask.shape[1])) for mask in (self.prompt_mask, other.prompt_mask)]
        )
        self.mask = torch.cat([functional.pad(mask, (answer - mask.shape[1], 0)) for mask in (self.mask, other.mask)])
        self.ids = torch.cat([self.ids, other.ids])
        join(self.cache.self_attention_cache, other.cache.self_attention_cache)
        join_right(self.cache.cross_attention_cache, other.cache.cross_attention_cache)
        self.adapters += other.adapters

    def extend(self, tokens: Sequence[int]) -> None:
        """Set the next input: one token for each row."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)
