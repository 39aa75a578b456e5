"""The `encoder` runner: one pass through models that classify, find answers or embed.

What a family lets rows share is tried on the model itself, once it is loaded: on which side they may be padded, and
which modules see something else than the rows' tokens.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.module_tree import HEADS
from graft_runtime.model.pooling import Pooler
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.padding import declared_padding, padded, padding_mask
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.sharing import Sharing, try_sharing

NAME = "encoder"


@dataclass(frozen=True)
class EncoderRow:
    """One input.

    Attributes:
        ids: token ids.
        adapters: the bank holds them.
        types: token types, as many as ids, for a pair of texts; None: one text.
        pooled: one vector is to be made of its hidden states.
    """

    ids: Sequence[int]
    adapters: tuple[RowAdapter, ...] = ()
    types: Sequence[int] | None = None
    pooled: bool = False


class EncoderRunner(Runner):
    """Takes rows through the model."""

    name = NAME

    def __init__(self, base: BaseModel, modules: AdapterModules) -> None:
        super().__init__(base, modules)
        self._padding = _Padding(base)
        self._has_types = bool(getattr(base.model.config, "type_vocab_size", 0))
        """Whether a text of its own has a type; others add a token's embedding for any type that they are given."""
        self.sharing = Sharing(side="right")
        with torch.inference_mode():
            self.sharing = try_sharing(base, self._plain)
            self._pooler = self._make_pooler()

    def run(self, rows: Sequence[EncoderRow]) -> list[torch.Tensor]:
        """Return what the model says of each row.

        Returns:
            By the base's task: sequence classification [labels], token classification [tokens, labels], question
            answering [2, tokens] (start, end), all of them logits; feature extraction [tokens, features], pooled
            [features].
        """
        made: dict[int, torch.Tensor] = {}
        for group in self._groups(rows):
            outputs = self._computed([rows[index] for index in group], self.sharing.side)
            made.update(zip(group, outputs, strict=True))
        return [made[index] for index in range(len(rows))]

    def trial(self, adapter: CompiledAdapter, name: str) -> CompiledAdapter:
        """Take an adapter through the model beside the base.

        Raises:
            GraftError: UnsupportedMethod for virtual tokens, which only what generates has a place for; else as
                `Trials.run` says.
        """
        if tokens := adapter.facts.virtual_tokens:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"adapter `{name}` puts {tokens} virtual tokens before each text, which Graft serves "
                "on models that generate, not on one that classifies or embeds",
                hint="train LoRA for this task",
            )

        return super().trial(adapter, name)

    def logits_of(self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
        """Return the largest value of each row's output, [rows, 1]: rows may have labels of their own."""
        rows = [EncoderRow(self.sharing.ended(prompt), row) for prompt, row in zip(prompts, adapters, strict=True)]
        return torch.stack([output.abs().max()[None] for output in self.run(rows)])

    def _groups(self, rows: Sequence[EncoderRow]) -> list[list[int]]:
        """Group the rows that may share a pass."""
        apart = any(path in self.sharing.batch_wide and module.used for path, module in self.bank.modules.items())
        groups: dict[Hashable, list[int]] = {}
        for index, row in enumerate(rows):
            length = len(row.ids) if self.sharing.side is None else 0
            groups.setdefault((length, row.adapters if apart else ()), []).append(index)
        return list(groups.values())

    def _make_pooler(self) -> Pooler | None:
        """Return what makes vectors, where the base embeds. Whether a state sees ahead is tried on the model."""
        base = self._base
        if base.pooling is None:
            return None
        first, second = (self._plain([self.sharing.ended([0, last])], None)[0][0] for last in (0, 1))
        return Pooler(base.pooling, sees_ahead=not torch.equal(first, second), name=base.name, device=base.device)

    def _plain(self, rows: Sequence[Sequence[int]], side: str | None) -> list[torch.Tensor]:
        return self._computed([EncoderRow(ids) for ids in rows], side)

    def _computed(self, rows: Sequence[EncoderRow], side: str | None) -> list[torch.Tensor]:
        """Run these rows in one pass, padded on this side; None: the rows are of one length."""
        longest, left = max(len(row.ids) for row in rows), side == "left"
        texts = [row.ids for row in rows]
        ids = padded(texts, self._padding.token_for(rows), left=left, device=self.device)
        mask = padding_mask(texts, left=left, device=self.device)
        types = padded([row.types or [0] * len(row.ids) for row in rows], 0, left=left, device=self.device)
        offered = {"attention_mask": mask, "use_cache": False}
        if self._has_types:
            offered["token_type_ids"] = types
        inputs = {name: value for name, value in offered.items() if name in self._parameters}
        starts = [len(row.ids) - longest if left else 0 for row in rows]
        with self._active([row.adapters for row in rows], starts, longest):
            made = self._base.model(input_ids=ids, return_dict=True, **inputs)
        spans = [slice(longest - len(row.ids), longest) if left else slice(0, len(row.ids)) for row in rows]
        return [self._output(made, row, index, span) for index, (row, span) in enumerate(zip(rows, spans, strict=True))]

    def _labels(self, row: EncoderRow) -> int:
        """Return how many labels the row's adapter has where it has a head of its own, else how many the base has."""
        own = [count for part in row.adapters if (count := _own_labels(part.adapter)) is not None]
        return own[0] if own else int(self._base.model.config.num_labels)

    def _output(self, made: Any, row: EncoderRow, index: int, span: slice) -> torch.Tensor:
        output: torch.Tensor
        match self._base.task:
            case Task.SEQ_CLS:
                output = made.logits[index, : self._labels(row)]
            case Task.TOKEN_CLS:
                output = made.logits[index, span, : self._labels(row)]
            case Task.QUESTION_ANS:
                output = torch.stack([made.start_logits[index, span], made.end_logits[index, span]])
            case _:
                output = made.last_hidden_state[index, span]
                if row.pooled:
                    assert self._pooler is not None, "the base embeds"
                    output = self._pooler.vector(output)
        return output


def _own_labels(adapter: CompiledAdapter) -> int | None:
    """Return how many labels an adapter's own head has."""
    return next((d.rows.count for path, d in adapter.modules.items() if path in HEADS and d.rows is not None), None)


class _Padding:
    """The token that pads. Some models find the end of a row by it, so it must be the one that they know."""

    def __init__(self, base: BaseModel) -> None:
        self._vocabulary = base.vocabulary_size
        self._config = base.model.config.get_text_config()
        self._declared = declared_padding(base)

    def token_for(self, rows: Sequence[EncoderRow]) -> int:
        """Return the declared token; where none is declared, a token that none of the rows holds."""
        if self._declared is not None:
            return self._declared
        used = {token for row in rows for token in row.ids}
        token = next((token for token in range(self._vocabulary) if token not in used), 0)
        self._config.pad_token_id = token
        return token
