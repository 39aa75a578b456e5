"""Adapters beside the modules of a model: each token of a step gets those that its request names, in one pass.

    z = (x · aᵀ) · weight[token, owner of column], or 0 where that is 0;  y += z · b

Filled with 0 and not only multiplied: 0 · inf is NaN, and what one adapter computes must not reach another's row.
Vectors are gathered by each token's slot. Only adapters with rows or parameters of their own cost a pass each. The same
for every runner: what differs is only which tokens a step holds. Where there are columns alone, the linear module adds
them itself; hooks are for all else.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graft_runtime.adapters.deltas import Rows
from graft_runtime.model.bank import Bank
from graft_runtime.model.bank_module import BankModule
from graft_runtime.model.hooked import Hooked, HookedEmbedding, HookedExperts, HookedNorm, HookedRouter, Now
from graft_runtime.model.linear import Linear, add_product, own_linears, product
from graft_runtime.model.modules import BaseModules, Inputs
from graft_runtime.model.native import Columns
from graft_runtime.model.rows import AdapterInputs, TokenAdapters


class AdapterModules:
    """Hooks on the modules of a model. They stay from step to step while the same adapters are active, since to hang
    them takes as long as they work; a step without adapters has none.

    Args:
        model: a PreTrainedModel.
        bank: of the model.
    """

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank = bank
        own_linears(model)
        self._modules = BaseModules(model)
        self._head = model.get_output_embeddings()
        self._now = Now()
        self._hooks = ExitStack()
        self._hung: tuple[int, bool] | None = None
        """The version of the bank whose modules have hooks, and whether for a capture; None: no module has any."""
        captures = bank.device.type == "cuda" and torch.cuda.is_available()
        self._aside = torch.cuda.Stream(bank.device) if captures else None  # type: ignore[no-untyped-call]

    @contextmanager
    def active(self, inputs: AdapterInputs | None) -> Iterator[None]:
        """Let a forward pass inside serve the rows that `inputs` are of, see `Bank.inputs`; None: rows of the base."""
        self._now.step = inputs
        captured = self._aside is not None and torch.cuda.is_current_stream_capturing()
        self._hang(None if inputs is None else (self.bank.version, captured))
        try:
            yield
        finally:
            self._now.step = None

    def _hang(self, wanted: tuple[int, bool] | None) -> None:
        if wanted == self._hung:
            return
        self._hooks.close()
        self._hung = wanted
        if wanted is None:
            return
        for path, part in self.bank.modules.items():
            if part.used:
                module = self._modules.hooked(path)
                hooked = self._hooked(module, part)
                if isinstance(hooked, _HookedLinear) and isinstance(module, Linear) and hooked.columns_alone:
                    module.beside = hooked
                    self._hooks.callback(setattr, module, "beside", None)
                    continue
                if hooked.changes_inputs:
                    self._hooks.callback(module.register_forward_pre_hook(hooked.before).remove)
                self._hooks.callback(module.register_forward_hook(hooked.after).remove)

    def _hooked(self, module: nn.Module, part: BankModule) -> Hooked:
        if isinstance(module, nn.Embedding):
            return HookedEmbedding(part, self.bank, self._now)
        if part.low_rank_possible:
            aside = self._aside if self._hung is not None and self._hung[1] else None
            return _HookedLinear(part, self.bank, self._now, aside, head=module is self._head)
        if any(delta.experts for delta in part.groups.values()):
            return HookedExperts(part, self.bank, self._now)
        if any(delta.low_rank for delta in part.groups.values()):
            return HookedRouter(part, self.bank, self._now)
        return HookedNorm(part, self.bank, self._now)


class _HookedLinear(Hooked):
    """A linear module.

    Args:
        aside: a stream for what does not wait for the base's product: branches of a graph run beside each other.
    """

    def __init__(
        self, part: BankModule, bank: Bank, now: Now, aside: torch.cuda.Stream | None, *, head: bool = False
    ) -> None:
        super().__init__(part, bank, now, head=head)
        self._aside = aside
        self._begun: torch.Tensor | None = None

    @property
    def changes_inputs(self) -> bool:
        return self.part.uses("input_gain") or self._aside is not None

    @property
    def columns_alone(self) -> bool:
        """Tell whether `columns` or `add` is all that is to do."""
        return self.part.columns_alone and self._aside is None

    def columns(self, shape: torch.Size) -> Columns | None:
        """Return what the tokens take of the columns, see `Beside`."""
        if self.now.step is None or self.part.columns is None:
            return None
        runs = self.taken(shape).runs
        return None if runs is None else Columns(*self.part.columns, runs)

    def add(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """Return the module's output with the columns added, in place; between steps as it is."""
        if self.now.step is None:
            return y
        rows = x.reshape(-1, x.shape[-1])
        return self._with_columns(rows, y.view(rows.shape[0], -1), self.taken(x.shape[:-1])).view(y.shape)

    def changed_inputs(self, module: Any, inputs: Inputs) -> Inputs:
        x = inputs[0]
        taken = self.taken(x.shape[:-1])
        if self.part.uses("input_gain"):
            gain = self.part.vector("input_gain", taken.slots)
            x = (x.reshape(gain.shape) * gain.to(x.dtype)).view(x.shape)
        if self._aside is not None and self.part.uses("low_rank"):
            self._aside.wait_stream(torch.cuda.current_stream(x.device))
            with torch.cuda.stream(self._aside):
                self._begun = self._in_columns(x.reshape(-1, x.shape[-1]), taken)
        return (x, *inputs[1:])

    def changed(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        taken = self.taken(inputs[0].shape[:-1])
        y = output.reshape(x.shape[0], -1)
        for adapter, delta, tokens in self.groups(taken):
            if delta.rows is not None:
                y = _with_rows(y, x, delta.rows, tokens)
            if delta.low_rank is not None and not self.part.low_rank_in_columns(delta):
                columns = delta.low_rank.b.shape[1]
                z = functional.linear(x[tokens], delta.low_rank.a) * self.weights(taken, adapter)[tokens]
                y[tokens, :columns] += (z @ delta.low_rank.b).to(y.dtype)
        y = self._with_columns(x, y, taken)
        return self._with_vectors(y, taken).view(*output.shape[:-1], -1)

    def _with_columns(self, x: torch.Tensor, y: torch.Tensor, taken: TokenAdapters) -> torch.Tensor:
        if self.part.columns is None or not self.part.uses("low_rank"):
            return y
        b, width = self.part.columns[1], self.bank.width
        z, self._begun = self._begun, None
        if z is None:
            z = self._in_columns(x, taken)
        elif self._aside is not None:
            torch.cuda.current_stream(x.device).wait_stream(self._aside)
        add_product(y[:, : b.shape[1]], z, b[:width])  # another row's vocabulary may be larger
        return y

    def _in_columns(self, x: torch.Tensor, taken: TokenAdapters) -> torch.Tensor:
        """Return what each token takes of each column, [tokens, width]."""
        assert self.part.columns is not None
        a = self.part.columns[0]
        z = product(x.to(a.dtype), a[: self.bank.width])
        if taken.hidden is not None:
            z.masked_fill_(taken.hidden, 0)
        if taken.column_weights is not None:
            z *= taken.column_weights
        return z

    def _with_vectors(self, y: torch.Tensor, taken: TokenAdapters) -> torch.Tensor:
        if self.part.uses("offset"):
            slots = torch.arange(taken.slot_weights.shape[1], device=y.device)
            y = y + (taken.slot_weights @ self.part.vector("offset", slots)).to(y.dtype)
        if self.part.uses("gain"):
            y = y * self.part.vector("gain", taken.slots).to(y.dtype)
        if self.part.uses("shift"):
            y = y + self.part.vector("shift", taken.slots).to(y.dtype)
        return y


def _with_rows(y: torch.Tensor, x: torch.Tensor, rows: Rows, tokens: torch.Tensor) -> torch.Tensor:
    """Return the outputs with the adapter's own rows at these tokens; -inf for outputs that a token's weight lacks."""
    if rows.count > y.shape[1]:
        wider = y.new_full((y.shape[0], rows.count), float("-inf"))
        wider[:, : y.shape[1]] = y
        y = wider
    own = functional.linear(x[tokens].to(rows.weight.dtype), rows.weight, rows.bias)
    y[tokens[:, None], rows.index] = own.to(y.dtype)
    y[tokens, rows.count :] = float("-inf")
    return y
