"""The `padded` runner: batches through the model's stock forward and cache. Not fast, but right for every family.

Rows of unequal length are padded on the left, with a mask and positions of their own; so batches can be joined, and a
new request decodes with the others after its first pass. Where padding shows, as in families that keep a state instead
of keys and values, batches begin with rows of one length, or with one row, and are never joined.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.nn import functional
from transformers import DynamicCache

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.caches import can_join, cut_left, join, keeps_state, prefill
from graft_runtime.runners.module_state import ModuleState
from graft_runtime.runners.padding import padded, padding_mask, padding_token
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.together import logits_of, try_together
from graft_runtime.runners.trial import trial_row, trying

NAME = "padded"
CACHE_ARGUMENTS = {"past_key_values", "cache_params"}


class PaddedBatch:
    """Rows that go through the model together, one token a forward pass after the first."""

    def __init__(
        self,
        ids: torch.Tensor,
        mask: torch.Tensor,
        adapters: Sequence[tuple[RowAdapter, ...]],
        *,
        cache: Any,
        modules: list[torch.Tensor | None],
    ) -> None:
        self.ids = ids
        """[rows, tokens]: the input of the next forward pass."""
        self.mask = mask
        """[rows, all tokens so far and the next input]."""
        self.adapters = list(adapters)
        """Of each row."""
        self.cache = cache
        self.modules = modules
        """See ModuleState."""

    @property
    def length(self) -> int:
        """Return how many tokens the longest row has, the next input included."""
        return self.mask.shape[1]

    def keep(self, rows: Sequence[int]) -> None:
        """Drop every row but these; the memory of the others is free."""
        index = torch.tensor(rows, device=self.ids.device)
        self.ids = self.ids[index]
        self.mask = self.mask[index]
        self.adapters = [self.adapters[row] for row in rows]
        self.cache.reorder_cache(index)
        self.modules = [None if value is None else value[index] for value in self.modules]
        padding = int(self.mask.argmax(dim=1).min())  # before the first token of the longest row
        if padding:
            cut_left(self.cache, padding)
            self.mask = self.mask[:, padding:]

    def join(self, other: PaddedBatch) -> None:
        """Add another batch's rows after this one's; both batches have been through the model. The other is spent."""
        length = max(self.length, other.length)
        self.mask = torch.cat([functional.pad(batch.mask, (length - batch.length, 0)) for batch in (self, other)])
        self.ids = torch.cat([self.ids, other.ids])
        join(self.cache, other.cache)
        self.adapters += other.adapters

    def extend(self, tokens: Sequence[int]) -> None:
        """Set the next input: one token for each row."""
        self.ids = torch.tensor(tokens, device=self.ids.device)[:, None]
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(tokens), 1)], dim=1)


class PaddedRunner(Runner):
    """Makes batches and takes them through the model. Raises NotAModel for a model that keeps no cache."""

    name = NAME

    def __init__(self, base: BaseModel, modules: AdapterModules) -> None:
        super().__init__(base, modules)
        if not self._parameters & CACHE_ARGUMENTS:
            raise GraftError(
                ErrorCode.NOT_A_MODEL,
                f"base model `{base.name}` can't be served: {type(base.model).__name__} takes no cache",
                hint="use a model of a family that generates with a cache",
            )
        self._padding_token = padding_token(base)
        self._masks = "attention_mask" in self._parameters and not keeps_state(self._new_cache())
        """Whether it is given a mask: the families with a state misread one when decoding."""
        self._own = ModuleState(base.model)
        with torch.inference_mode():
            with trying(base):
                self.logits(self.start([trial_row(base, 2, row) for row in range(2)], [[], []], [(), ()]))
            stateful = self._own.find(rows=2)
            self.together = try_together(
                base,
                self,
                pads=self._masks and not stateful,
                can_join=lambda batch: not stateful and can_join(batch.cache),
            )

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        adapters: Sequence[tuple[RowAdapter, ...]],
    ) -> PaddedBatch:
        """Make a new batch, and compute nothing yet.

        Args:
            prompts: token ids of each row, any for virtual tokens.
            answers: what each row has been answered already.
            adapters: of each row.
        """
        prefixes = [next((part.adapter.prefix for part in row if part.adapter.prefix), None) for row in adapters]
        rows = [[*prompt, *answer] for prompt, answer in zip(prompts, answers, strict=True)]
        rows = [row[prefix.tokens if prefix else 0 :] for row, prefix in zip(rows, prefixes, strict=True)]
        ids = padded(rows, self._padding_token, left=True, device=self.device)
        mask = padding_mask(rows, left=True, device=self.device)
        cache = self._new_cache()
        if any(prefixes):
            mask = torch.cat([prefill(cache, prefixes).to(mask), mask], dim=1)
        return PaddedBatch(ids, mask, adapters, cache=cache, modules=self._own.fresh())

    def shares(self, rows: Sequence[tuple[int, tuple[RowAdapter, ...]]]) -> bool:
        """Tell whether rows may begin in one batch. See `BatchRunner`.

        A prefix must end where its row begins: columns between them would count for windows and relative positions.
        """
        prefixes = [_prefix_tokens(adapters) for _, adapters in rows]
        own = [length - prefix for (length, _), prefix in zip(rows, prefixes, strict=True)]
        if any(prefix and length < max(own) for prefix, length in zip(prefixes, own, strict=True)):
            return False
        return self.together.rows.allows(list(zip(prefixes, own, strict=True)))

    def run(self, batch: PaddedBatch) -> torch.Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]; `batch.cache` grows by the input."""
        tokens = batch.ids.shape[1]
        self._own.put(batch.modules)
        with self._active(batch.adapters, (batch.mask.sum(dim=1) - tokens).tolist(), tokens):
            logits: torch.Tensor = self._base.model(**self._inputs(batch)).logits[:, -1]
        batch.modules = self._own.take()
        return logits

    logits = run

    def logits_of(self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
        return logits_of(self, prompts, adapters)

    def _inputs(self, batch: PaddedBatch) -> dict[str, Any]:
        positions = (batch.mask.cumsum(-1) - 1).clamp(min=0)
        offered = {
            "position_ids": positions[:, -batch.ids.shape[1] :],
            "attention_mask": batch.mask,
            "past_key_values": batch.cache,
            "cache_params": batch.cache,
            "logits_to_keep": 1,
        }
        if not self._masks:
            del offered["attention_mask"]
        inputs = {name: value for name, value in offered.items() if name in self._parameters}
        return {"input_ids": batch.ids, "use_cache": True, "return_dict": True, **inputs}

    def _new_cache(self) -> DynamicCache:
        return DynamicCache(config=self._base.model.config)


def _prefix_tokens(adapters: Sequence[RowAdapter]) -> int:
    return sum(part.adapter.prefix.tokens for part in adapters if part.adapter.prefix is not None)
