"""What every runner has in common: a base, the adapters on its modules, and their trials."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import Row, RowAdapter
from graft_runtime.runners.trial import Trials


class Runner:
    """Takes rows of tokens through a model.

    Args:
        base: the model.
        modules: the adapters' hooks on it.
    """

    name: str

    def __init__(self, base: BaseModel, modules: AdapterModules) -> None:
        self._base = base
        self._modules = modules
        self._parameters = set(inspect.signature(base.model.forward).parameters)
        self._trials = Trials(base, modules.bank, self.logits_of)
        self.bank = modules.bank
        self.device = base.device

    @property
    def context_length(self) -> int:
        """Return the length in tokens of the longest row that can run."""
        return self._base.context_length

    def trial(self, adapter: CompiledAdapter, name: str) -> CompiledAdapter:
        """Take an adapter through the model beside the base; see `Trials.run`."""
        return self._trials.run(adapter, name)

    def logits_of(self, prompts: Sequence[Sequence[int]], adapters: Sequence[tuple[RowAdapter, ...]]) -> torch.Tensor:
        """Return the logits after each prompt, [rows, vocabulary]; what no request runs on is used for it.

        Args:
            prompts: token ids of each row, any for virtual tokens.
            adapters: of each row; the bank holds them.
        """
        raise NotImplementedError

    def seen_before(self, prompt: Sequence[int]) -> Sequence[int]:
        """Return the tokens before the answer that the model goes on from."""
        return prompt

    @contextmanager
    def _active(self, adapters: Sequence[tuple[RowAdapter, ...]], starts: Sequence[int], tokens: int) -> Iterator[None]:
        """Make a pass inside `with` serve rows of equally many tokens; `starts`: the position of each row's first."""
        last = torch.arange(1, len(adapters) + 1, device=self.device) * tokens - 1
        rows = [Row(row, start, tokens) for row, start in zip(adapters, starts, strict=True)]
        with self._modules.active(self.bank.inputs(rows, last)):
            yield
