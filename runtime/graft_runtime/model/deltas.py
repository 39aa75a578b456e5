"""Adapters beside the modules of a model: each row of a batch gets those that its request names, in one pass.

All adapters of a batch lie side by side in one bank a module: `a` [columns, input], `b` [columns, output]. A row takes
its columns with its weights and nothing of the others:

    z = where(weight[row, owner of column] ≠ 0, (x · aᵀ) · weight, 0);  y += z · b

`where` and not a bare product: 0 · inf is NaN, and what one adapter computes must not reach another's row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.layout import linear_shape


@dataclass(frozen=True)
class RowAdapter:
    """One adapter of one row, and how much of it."""

    adapter: CompiledAdapter
    weight: float


@dataclass(frozen=True)
class _Columns:
    """Which row takes which column of a bank, and how much. Shared by the modules whose columns have the same owners.

    Attributes:
        taken: [rows, columns], bool.
        weight: [rows, columns].
    """

    taken: torch.Tensor
    weight: torch.Tensor

    def keep(self, rows: torch.Tensor) -> _Columns:
        return _Columns(self.taken[rows], self.weight[rows])


@dataclass(frozen=True)
class _Span:
    """The columns of all adapters of a batch on one module.

    Attributes:
        a: [columns, input features].
        b: [columns, output features].
        columns: whose they are.
    """

    a: torch.Tensor
    b: torch.Tensor
    columns: _Columns

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """y + the deltas of each row.

        Args:
            x: [rows, tokens, input] or, where the model has flattened it, [rows · tokens, input].
            y: the same with the output features.

        Raises:
            GraftError: UnsupportedMethod when the model has mixed the rows up.
        """
        rows, columns = self.columns.taken.shape
        if x.shape[0] % rows or (x.dim() > 2 and x.shape[0] != rows):
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"the model hands one of its modules {tuple(x.shape)}, which is not in the order of the {rows} rows",
                hint="train the adapter without the modules that see tokens in another order, as experts do",
            )
        z = functional.linear(x.to(self.a.dtype), self.a).view(rows, -1, columns)
        z = torch.where(self.columns.taken[:, None], z * self.columns.weight[:, None], 0)
        return y + (z.view(-1, columns) @ self.b).view(y.shape).to(y.dtype)


class AdapterBatch:
    """The adapters of one batch of rows, ready for the model. Immutable."""

    def __init__(self, spans: Mapping[str, _Span]) -> None:
        self.spans = spans

    @classmethod
    def build(cls, rows: Sequence[Sequence[RowAdapter]]) -> AdapterBatch:
        """Lays the adapters of these rows side by side; a row without any is the base model's.

        Args:
            rows: the adapters of each row of the batch, in the batch's order.
        """
        owners = list(dict.fromkeys(part.adapter for row in rows for part in row))
        weights = torch.zeros(len(rows), len(owners))
        for index, row in enumerate(rows):
            for part in row:
                weights[index, owners.index(part.adapter)] += part.weight
        layouts: dict[tuple[tuple[int, int], ...], _Columns] = {}
        paths = dict.fromkeys(path for owner in owners for path in owner.low_rank)
        return cls({path: _span(path, owners, weights, layouts) for path in paths})

    def keep(self, rows: torch.Tensor) -> AdapterBatch:
        """The batch with these rows only, in this order. [rows kept], on the model's device."""
        kept: dict[int, _Columns] = {}
        spans = {}
        for path, span in self.spans.items():
            columns = kept.setdefault(id(span.columns), span.columns.keep(rows))
            spans[path] = _Span(span.a, span.b, columns)
        return AdapterBatch(spans)


def _span(
    path: str,
    owners: Sequence[CompiledAdapter],
    weights: torch.Tensor,
    layouts: dict[tuple[tuple[int, int], ...], _Columns],
) -> _Span:
    deltas = [(index, owner.low_rank[path]) for index, owner in enumerate(owners) if path in owner.low_rank]
    a = torch.cat([delta.a for _, delta in deltas])
    b = torch.cat([delta.b for _, delta in deltas])
    key = tuple((index, delta.a.shape[0]) for index, delta in deltas)
    if key not in layouts:
        column_owner = torch.tensor([index for index, columns in key for _ in range(columns)])
        weight = weights[:, column_owner].to(a.device)
        layouts[key] = _Columns(weight != 0, weight.to(a.dtype))
    return _Span(a, b, layouts[key])


class AdapterModules:
    """Hooks on every linear module of a model; one that no adapter of the running batch touches costs a look-up."""

    def __init__(self, model: nn.Module) -> None:
        self._spans: Mapping[str, _Span] = {}
        for path, module in model.named_modules():
            if linear_shape(module) is not None:
                module.register_forward_hook(self._hook(path))

    @contextmanager
    def active(self, batch: AdapterBatch) -> Iterator[None]:
        """Inside, a forward pass of the model serves this batch."""
        self._spans = batch.spans
        try:
            yield
        finally:
            self._spans = {}

    def _hook(self, path: str) -> Any:
        def add_deltas(module: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor) -> torch.Tensor:
            span = self._spans.get(path)
            return output if span is None else span.add(inputs[0], output)

        return add_deltas
