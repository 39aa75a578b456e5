"""Adapters beside the modules of a model: each token of a step gets those that its request names, in one pass.

    z = where(weight[token, owner of column] ≠ 0, (x · aᵀ) · weight, 0);  y += z · b

`where` and not a bare product: 0 · inf is NaN, and what one adapter computes must not reach another's row. The same for
every runner: what differs is only which tokens a step holds.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.bank import Bank, Columns, RowAdapter


@dataclass(frozen=True)
class _Step:
    """What the modules see while a forward pass runs; `last` is of the tokens that the head may be limited to."""

    all: Columns
    last: Columns
    rows: Columns

    def of(self, tokens: int, *, head: bool) -> Columns:
        """The columns of a module's input. Raises GraftError: UnsupportedMethod when the model mixes tokens up."""
        if head and tokens == self.last.weight.shape[0]:
            return self.last
        if tokens == self.all.weight.shape[0]:
            return self.all
        rows = self.rows.weight.shape[0]
        if tokens % rows == 0:  # as many of each row: what the encoder made of the prompts, one a row
            return self.rows.of(torch.arange(rows, device=self.rows.weight.device).repeat_interleave(tokens // rows))
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"the model hands one of its modules {tokens} tokens of {self.all.weight.shape[0]}",
            hint="train the adapter without the modules that see only some tokens, as experts do",
        )


class AdapterModules:
    """Hooks on the linear modules of a model. A step without adapters has none of them at work.

    Args:
        model: a PreTrainedModel.
        bank: of the model's linear modules.
    """

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank = bank
        self._step: _Step | None = None
        self._head = model.get_output_embeddings()
        self._modules = {path: model.get_submodule(path) for path in bank.modules}

    @contextmanager
    def active(self, rows: Sequence[Sequence[RowAdapter]], tokens: Sequence[int], last: torch.Tensor) -> Iterator[None]:
        """Inside, a forward pass of the model serves these rows.

        Args:
            rows: the adapters of each row; the bank holds them.
            tokens: of each row; together the tokens of the pass, in order.
            last: the tokens that the head computes if it is limited, as indices of all tokens.
        """
        columns = self.bank.columns(rows, tokens)
        if columns is None:
            yield
            return
        ends = torch.tensor(tokens, device=columns.weight.device).cumsum(0) - 1
        self._step = _Step(columns, columns.of(last), columns.of(ends))
        hooks = [
            self._modules[path].register_forward_hook(self._hook(path))
            for path, module in self.bank.modules.items()
            if module.adapters
        ]
        try:
            yield
        finally:
            self._step = None
            for hook in hooks:
                hook.remove()

    def _hook(self, path: str) -> Any:
        part, width = self.bank.modules[path], self.bank.width
        head = self._modules[path] is self._head

        def add_deltas(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            assert self._step is not None
            x = inputs[0].reshape(-1, part.a.shape[1])
            columns = self._step.of(x.shape[0], head=head)
            z = functional.linear(x.to(part.a.dtype), part.a[:width])
            z = torch.where(columns.taken, z * columns.weight, 0)
            return output + (z @ part.b[:width]).view(output.shape).to(output.dtype)

        return add_deltas
