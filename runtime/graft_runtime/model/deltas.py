"""Adapters beside the modules of a model: each token of a step gets those that its request names, in one pass.

    z = where(weight[token, owner of column] ≠ 0, (x · aᵀ) · weight, 0);  y += z · b

`where` and not a bare product: 0 · inf is NaN, and what one adapter computes must not reach another's row. Vectors are
gathered by each token's slot. Only adapters with rows or parameters of their own cost a pass each. The same for every
runner: what differs is only which tokens a step holds.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn import functional

from graft_runtime.adapters.deltas import CompiledAdapter, ModuleDelta, Rows
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.bank import Bank
from graft_runtime.model.bank_module import BankModule
from graft_runtime.model.rows import Row, Step, Taken

Inputs = tuple[torch.Tensor, ...]


class AdapterModules:
    """Hooks on the modules of a model. A step without adapters has none of them at work.

    Args:
        model: a PreTrainedModel.
        bank: of the model.
    """

    def __init__(self, model: Any, bank: Bank) -> None:
        self.bank = bank
        self._model = model
        self._head = model.get_output_embeddings()
        self._heads_first: dict[int, bool] = {}

    @contextmanager
    def active(self, rows: Sequence[Row], last: torch.Tensor) -> Iterator[None]:
        """Inside, a forward pass of the model serves these rows.

        Args:
            rows: of the pass, in the order of its tokens; the bank holds their adapters.
            last: the tokens that the head computes if it is limited, as indices of all tokens.
        """
        step = self.bank.step(rows, last)
        if step is None:
            yield
            return
        with ExitStack() as hooks:
            for path, part in self.bank.modules.items():
                if part.used:
                    module = self._model.get_submodule(path)
                    hooked = self._hooked(module, part, step)
                    hooks.callback(module.register_forward_pre_hook(hooked.before).remove)
                    hooks.callback(module.register_forward_hook(hooked.after).remove)
            yield

    def _hooked(self, module: nn.Module, part: BankModule, step: Step) -> _Hooked:
        if isinstance(module, nn.Embedding):
            return _HookedEmbedding(part, self.bank, step)
        if part.low_rank_possible:
            return _HookedLinear(part, self.bank, step, head=module is self._head)
        return _HookedNorm(part, self.bank, step, self._heads_first)


class _Hooked:
    """One module during one step."""

    def __init__(self, part: BankModule, bank: Bank, step: Step, *, head: bool = False) -> None:
        self.part, self.bank, self.step, self.head = part, bank, step, head

    def before(self, module: Any, inputs: Inputs) -> Inputs | None:
        """The module's inputs, or None where they stay."""
        return None

    def after(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """The module's output."""
        raise NotImplementedError

    def taken(self, x: torch.Tensor, count: int) -> Taken:
        """By the tokens of an input."""
        return self.step.of(count, x.shape[0], head=self.head)

    def groups(self, taken: Taken) -> Iterator[tuple[CompiledAdapter, ModuleDelta, torch.Tensor]]:
        """The adapters that are computed by themselves, and the tokens that are theirs alone."""
        for adapter, delta in self.part.groups.items():
            yield adapter, delta, (taken.slots == self.bank.slot(adapter)).nonzero()[:, 0]

    def weights(self, taken: Taken, adapter: CompiledAdapter) -> torch.Tensor:
        """[tokens, 1]: how much each token takes of an adapter."""
        slot = self.bank.slot(adapter)
        return taken.slot_weights[:, slot : slot + 1]


class _HookedLinear(_Hooked):
    def before(self, module: Any, inputs: Inputs) -> Inputs | None:
        if not self.part.uses("input_gain"):
            return None
        x = inputs[0]
        taken = self.taken(x, x.shape[:-1].numel())
        gain = self.part.vector("input_gain", taken.slots)
        return ((x.reshape(gain.shape) * gain.to(x.dtype)).view(x.shape), *inputs[1:])

    def after(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        taken = self.taken(inputs[0], x.shape[0])
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

    def _with_columns(self, x: torch.Tensor, y: torch.Tensor, taken: Taken) -> torch.Tensor:
        a, b, width = self.part.a, self.part.b, self.bank.width
        if a is None or b is None or not self.part.uses("low_rank"):
            return y
        z = functional.linear(x.to(a.dtype), a[:width])
        z = torch.where(taken.columns, z * taken.column_weights, 0)
        made = (z @ b[:width]).to(y.dtype)
        if made.shape[1] == y.shape[1]:
            return y + made
        y[:, : made.shape[1]] += made  # another row's vocabulary is larger
        return y

    def _with_vectors(self, y: torch.Tensor, taken: Taken) -> torch.Tensor:
        if self.part.uses("offset"):
            slots = torch.arange(taken.slot_weights.shape[1], device=y.device)
            y = y + (taken.slot_weights @ self.part.vector("offset", slots)).to(y.dtype)
        if self.part.uses("gain"):
            y = y * self.part.vector("gain", taken.slots).to(y.dtype)
        if self.part.uses("shift"):
            y = y + self.part.vector("shift", taken.slots).to(y.dtype)
        return y


def _with_rows(y: torch.Tensor, x: torch.Tensor, rows: Rows, tokens: torch.Tensor) -> torch.Tensor:
    """With these tokens' outputs of the adapter's own rows. Outputs that a token's weight does not have are -inf."""
    if rows.count > y.shape[1]:
        wider = y.new_full((y.shape[0], rows.count), float("-inf"))
        wider[:, : y.shape[1]] = y
        y = wider
    own = functional.linear(x[tokens].to(rows.weight.dtype), rows.weight, rows.bias)
    y[tokens[:, None], rows.index] = own.to(y.dtype)
    y[tokens, rows.count :] = float("-inf")
    return y


class _HookedEmbedding(_Hooked):
    def before(self, module: Any, inputs: Inputs) -> Inputs | None:
        self._ids = inputs[0]  # as they were: only a row with a larger vocabulary has ids beyond the base's
        return (inputs[0].clamp(max=module.num_embeddings - 1), *inputs[1:])

    def after(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        ids = self._ids.reshape(-1)
        taken = self.taken(self._ids, ids.shape[0])
        y = output.reshape(ids.shape[0], -1)
        scale = getattr(module, "embed_scale", 1.0)
        for adapter, delta, tokens in self.groups(taken):
            if delta.rows is not None and len(delta.rows.index):
                at = torch.searchsorted(delta.rows.index, ids[tokens]).clamp(max=len(delta.rows.index) - 1)
                own = delta.rows.index[at] == ids[tokens]
                y[tokens[own]] = (delta.rows.weight[at[own]] * scale).to(y.dtype)
            if delta.low_rank is not None:
                weight = self.weights(taken, adapter)
                takers = (weight[:, 0] != 0).nonzero()[:, 0]
                made = delta.low_rank.a[:, ids[takers]].T @ delta.low_rank.b
                y[takers] += (made * weight[takers] * scale).to(y.dtype)
        return y.view(output.shape)


class _HookedNorm(_Hooked):
    """A norm of tokens, or of the heads of queries and keys: [rows, tokens, heads, ·] or [rows, heads, tokens, ·]."""

    def __init__(self, part: BankModule, bank: Bank, step: Step, heads_first: dict[int, bool]) -> None:
        super().__init__(part, bank, step)
        self._heads_first = heads_first

    def after(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        if len(inputs) != 1 or output.shape != x.shape:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"{type(module).__name__} takes more than what it normalises",
                hint="train the adapter without this module, or merge it with peft's merge_and_unload()",
            )
        if x.dim() == 4 and self._is_heads_first(module, x):
            return self._changed(module, x.transpose(1, 2), output.transpose(1, 2)).transpose(1, 2)
        return self._changed(module, x, output)

    def _changed(self, module: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        if x.dim() == 4:
            taken = self.taken(x, x.shape[:2].numel()).each(x.shape[2])
        else:
            taken = self.taken(x, x.shape[:-1].numel())
        rows, y = x.reshape(-1, x.shape[-1]), output.reshape(-1, x.shape[-1])
        for _, delta, tokens in self.groups(taken):
            y[tokens] = _with_parameters(module, delta.parameters).forward(rows[tokens]).to(y.dtype)
        return y.view(x.shape)

    def _is_heads_first(self, module: Any, x: torch.Tensor) -> bool:
        """A module hands its heads over in one order always; a pass of as many tokens as heads does not tell which."""
        if x.shape[1] != x.shape[2]:
            self._heads_first[id(module)] = x.shape[0] * x.shape[1] != self.step.all.slots.shape[0]
        return self._heads_first.get(id(module), False)


def _with_parameters(module: Any, parameters: Mapping[str, torch.Tensor]) -> Any:
    """The same module with other parameters in the place of some of its own, which stay as they are."""
    other = copy.copy(module)
    other._parameters = {**module._parameters, **parameters}
    return other
