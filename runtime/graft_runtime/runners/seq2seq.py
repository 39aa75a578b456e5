"""Sequence-to-sequence models on the `padded` runner: the prompt goes through the encoder once, the answer is decoded.

Prompts are padded on the right, since encoders count positions from the first token; answers on the left, as in the
padded runner. How far a family lets rows share a batch is tried on the model itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import DynamicCache, EncoderDecoderCache
from transformers.modeling_outputs import BaseModelOutput

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.caches import can_join
from graft_runtime.runners.padded import NAME
from graft_runtime.runners.padding import padded, padding_mask, padding_token
from graft_runtime.runners.positions import Positions
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.seq2seq_batch import Seq2SeqBatch
from graft_runtime.runners.together import logits_of, try_together


class Seq2SeqRunner(Runner):
    """Makes batches and takes them through the model.

    Raises:
        GraftError: NotAModel for a model that does not generate from token ids alone, or not with a cache.
    """

    name = NAME

    def __init__(self, base: BaseModel, modules: AdapterModules) -> None:
        super().__init__(base, modules)
        self._padding_token = padding_token(base)
        self._start_token = _start_token(base)
        self._forced_first = _own_token(base.model.generation_config.forced_bos_token_id, base)
        self._positions = Positions(base.model)
        with torch.inference_mode():
            self.together = try_together(base, self, pads=True, can_join=self._can_join)

    def start(
        self,
        prompts: Sequence[Sequence[int]],
        answers: Sequence[Sequence[int]],
        adapters: Sequence[tuple[RowAdapter, ...]],
    ) -> Seq2SeqBatch:
        """Make a new batch, and compute nothing yet.

        Args:
            prompts: token ids of each row.
            answers: what each row has been answered already, as a rule nothing.
            adapters: of each row.
        """
        begun = [[self._start_token, *answer] for answer in answers]
        return Seq2SeqBatch(*self._padded(prompts, left=False), *self._padded(begun, left=True), adapters)

    def shares(self, rows: Sequence[tuple[int, tuple[RowAdapter, ...]]]) -> bool:
        """Tell whether rows may begin in one batch. See `BatchRunner`."""
        return self.together.rows.allows([length for length, _ in rows])

    def run(self, batch: Seq2SeqBatch) -> torch.Tensor:
        """Return the logits after each row's last token, [rows, vocabulary]; `batch.cache` grows by the input."""
        logits = self.logits(batch)
        if self._forced_first is None:
            return logits
        begins = batch.mask.sum(dim=1, keepdim=True) == 1
        others = torch.arange(logits.shape[1], device=logits.device) != self._forced_first
        return logits.masked_fill(begins & others, -torch.inf)

    def seen_before(self, prompt: Sequence[int]) -> Sequence[int]:
        return [self._start_token]

    def logits_of(self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
        return logits_of(self, prompts, adapters)

    def logits(self, batch: Seq2SeqBatch) -> torch.Tensor:
        if batch.states is None:
            batch.states = self._encode(batch)
        tokens = batch.ids.shape[1]
        starts = (batch.mask.sum(dim=1) - tokens).tolist()
        with self._active(batch.adapters, starts, tokens), self._positions.less(batch.padding):
            made = self._base.model(
                encoder_outputs=BaseModelOutput(last_hidden_state=batch.states),
                attention_mask=batch.prompt_mask,
                decoder_input_ids=batch.ids,
                decoder_attention_mask=batch.mask,
                past_key_values=batch.cache,
                use_cache=True,
                return_dict=True,
            )
        batch.cache = made.past_key_values
        logits: torch.Tensor = made.logits[:, -1]
        return logits

    def _encode(self, batch: Seq2SeqBatch) -> torch.Tensor:
        rows, tokens = batch.prompt.shape
        with self._active(batch.adapters, [0] * rows, tokens):
            made = self._base.model.get_encoder()(
                input_ids=batch.prompt, attention_mask=batch.prompt_mask, return_dict=True
            )
        states: torch.Tensor = made.last_hidden_state
        # What is masked is still multiplied, and 0 · NaN is NaN.
        return torch.where(batch.prompt_mask[:, :, None] == 1, states, 0)

    def _padded(self, rows: Sequence[Sequence[int]], *, left: bool) -> tuple[torch.Tensor, torch.Tensor]:
        ids = padded(rows, self._padding_token, left=left, device=self.device)
        return ids, padding_mask(rows, left=left, device=self.device)

    @staticmethod
    def _can_join(batch: Seq2SeqBatch) -> bool:
        if not isinstance(batch.cache, EncoderDecoderCache):
            return False
        caches = (batch.cache.self_attention_cache, batch.cache.cross_attention_cache)
        return all(isinstance(cache, DynamicCache) and can_join(cache) for cache in caches)


def _start_token(base: BaseModel) -> int:
    """Return the decoder's first input, as Transformers picks it. Raises GraftError: NotAModel."""
    generation, config = base.model.generation_config, base.model.config.get_text_config(decoder=True)
    for field in ("decoder_start_token_id", "bos_token_id"):
        for declares in (generation, config):
            if (token := _own_token(getattr(declares, field, None), base)) is not None:
                return token
    raise GraftError(
        ErrorCode.NOT_A_MODEL,
        f"base model `{base.name}` can't be served: nothing says what its decoder starts with",
        hint="set decoder_start_token_id in its generation_config.json",
    )


def _own_token(value: Any, base: BaseModel) -> int | None:
    return value if type(value) is int and 0 <= value < base.vocabulary_size else None
