"""The `padded` runner: batches through the model's stock forward and cache. Not fast, but right for every family.

Rows of unequal length are padded on the left, with a mask and positions of their own; so batches can be joined, and a
new request decodes with the others after its first pass. Families that keep a state instead of keys and values get
batches of equal length that are never joined: no padding ever enters the state.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.deltas import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import Row, RowAdapter
from graft_runtime.runners.caches import can_join, cut_left, join, keeps_state
from graft_runtime.runners.trial import try_adapter

NAME = "padded"
CACHE_ARGUMENTS = {"past_key_values", "cache_params"}


class PaddedBatch:
    """Rows that go through the model together, one token a forward pass after the first."""

    def __init__(
        self, ids: torch.Tensor, mask: torch.Tensor, adapters: Sequence[tuple[RowAdapter, ...]], cache: Any
    ) -> None:
        self.ids = ids
        """[rows, tokens]: the input of the next forward pass."""
        self.mask = mask
        """[rows, all tokens so far and the next input]."""
        self.adapters = list(adapters)
        """Of each row."""
        self.cache = cache

    @property
    def length(self) -> int:
        """Tokens of the longest row, the next input included."""
        return self.mask.shape[1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drops every row but these; their memory is free."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[index]
        self.mask = self.mask[index]
        self.adapters = [self.adapters[row] for row in rows]
        self.cache.reorder_cache(index)
        padding = int(self.mask.argmax(dim=1).min())  # before the first token of the longest row
        if padding:
            cut_left(self.cache, padding)
            self.mask = self.mask[:, padding:]

    def join(self, other: PaddedBatch) -> None:
        """Takes in the rows of another batch, after its own; both have been through the model. The other is spent."""
        length = max(self.length, other.length)
        self.mask = torch.cat([functional.pad(batch.mask, (length - batch.length, 0)) for batch in (self, other)])
        self.ids = torch.cat([self.ids, other.ids])
        join(self.cache, other.cache)
        self.adapters += other.adapters

    def extend(self, tokens: Sequence[int]) -> None:
        """The next input: one token for each row."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)


class PaddedRunner:
    """Makes batches and takes them through the model. Raises NotAModel for a model that keeps no cache."""

    name = NAME

    def __init__(self, base: BaseModel, modules: AdapterModules) -> None:
        self._base = base
        self._modules = modules
        self.bank = modules.bank
        self._parameters = set(inspect.signature(base.model.forward).parameters)
        if not self._parameters & CACHE_ARGUMENTS:
            raise GraftError(
                ErrorCode.NOT_A_MODEL,
                f"base model `{base.name}` can't be served: {type(base.model).__name__} takes no cache",
                hint="use a model of a family that generates with a cache",
            )
        self._padding_token = padding_token(base)
        self.pads = "attention_mask" in self._parameters and not keeps_state(self._new_cache())
        """Whether rows of unequal length may share a batch."""
        self.joins = self.pads and can_join(self._new_cache())
        """Whether a batch can take in the rows of another."""

    @property
    def context_length(self) -> int:
        """Tokens of the longest sequence that can run."""
        return self._base.context_length

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        adapters: Sequence[tuple[RowAdapter, ...]],
    ) -> PaddedBatch:
        """A new batch; computes nothing yet.

        Args:
            prompts: token ids of each row.
            answers: what each row has been answered already; with the prompts of one length unless `pads`.
            adapters: of each row.
        """
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        longest = max(map(len, rows))
        padding = [longest - len(row) for row in rows]
        ids = [[self._padding_token] * pad + row for pad, row in zip(padding, rows, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in padding]
        device = self._base.device
        return PaddedBatch(
            torch.tensor(ids, device=device),
            torch.tensor(mask, device=device),
            adapters,
            self._new_cache(),
        )

    def forward(self, batch: PaddedBatch) -> torch.Tensor:
        """The logits after each row's last token, [rows, vocabulary]. `batch.cache` has grown by the input."""
        count, tokens = batch.ids.shape
        last = torch.arange(1, count + 1, device=batch.ids.device) * tokens - 1
        starts = (batch.mask.sum(dim=1) - tokens).tolist()
        rows = [Row(adapters, start, tokens) for adapters, start in zip(batch.adapters, starts, strict=True)]
        with self._modules.active(rows, last):
            return self._base.model(**self._inputs(batch)).logits[:, -1]  # type: ignore[no-any-return]

    def trial(self, adapter: CompiledAdapter, name: str) -> None:
        """One forward pass of this adapter beside the base's. Raises GraftError, as `try_adapter` says."""

        def forward(prompts: Sequence[list[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
            return self.forward(self.start(prompts, [[] for _ in prompts], adapters))

        try_adapter(self._base, self.bank, adapter, name, forward)

    def _inputs(self, batch: PaddedBatch) -> dict[str, Any]:
        positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)
        offered = {
            "position_ids": positions[:, -batch.ids.shape[1] :],
            "attention_mask": batch.mask,
            "past_key_values": batch.cache,
            "cache_params": batch.cache,
            "logits_to_keep": 1,
        }
        if not self.pads:  # without padding no mask is needed, and the families with a state misread one when decoding
            del offered["attention_mask"]
        inputs = {name: value for name, value in offered.items() if name in self._parameters}
        return {"input_ids": batch.ids, "use_cache": True, "return_dict": True, **inputs}

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self._base.model.config)


def padding_token(base: BaseModel) -> int:
    """Any token that the embedding has: what it computes is masked away."""
    declared = getattr(base.model.config.get_text_config(decoder=True), "pad_token_id", None)
    return declared if isinstance(declared, int) and 0 <= declared < base.vocabulary_size else 0
