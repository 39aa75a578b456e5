"""What active adapters do to one module of a step, for modules of each kind but linear ones."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from graft_runtime.adapters.deltas import CompiledAdapter, ModuleDelta
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.bank import Bank
from graft_runtime.model.bank_module import BankModule
from graft_runtime.model.experts import WeightedDeltas, experts_forward, routed, with_rows
from graft_runtime.model.modules import Inputs, with_parameters
from graft_runtime.model.rows import AdapterInputs, TokenAdapters


@dataclass
class Now:
    """The step that runs; None between steps: whoever calls the model then gets the base's answer."""

    step: AdapterInputs | None = None


class Hooked:
    """One module while the same adapters are active."""

    def __init__(self, part: BankModule, bank: Bank, now: Now, *, head: bool = False) -> None:
        self.part, self.bank, self.now, self.head = part, bank, now, head

    @property
    def step(self) -> AdapterInputs:
        """Return the step that runs."""
        assert self.now.step is not None
        return self.now.step

    @property
    def changes_inputs(self) -> bool:
        """Tell whether `changed_inputs` does anything."""
        return False

    def before(self, module: Any, inputs: Inputs) -> Inputs | None:
        """Return the changed inputs, or None between steps: this is the pre-hook."""
        return None if self.now.step is None else self.changed_inputs(module, inputs)

    def after(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor | None:
        """Return the changed output, or None between steps: this is the hook."""
        return None if self.now.step is None else self.changed(module, inputs, output)

    def changed_inputs(self, module: Any, inputs: Inputs) -> Inputs:
        """Return the module's inputs as the adapters change them."""
        return inputs

    def changed(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        """Return the module's output as the adapters change it."""
        raise NotImplementedError

    def taken(self, shape: tuple[int, ...]) -> TokenAdapters:
        """Return what the tokens of an input take; `shape` is the input's without its features.

        A module is handed rows and tokens in one order always; as many rows as tokens don't tell which order.
        """
        if len(shape) > 1 and 1 < self.step.rows in shape[:2] and 1 < shape[0] != shape[1]:
            self.part.tokens_first = shape[1] == self.step.rows
        return self.step.of(shape, self.part.path, head=self.head, tokens_first=self.part.tokens_first)

    def groups(self, taken: TokenAdapters) -> Iterator[tuple[CompiledAdapter, ModuleDelta, torch.Tensor]]:
        """Yield each adapter that is computed by itself, with its delta and the tokens that are the adapter's alone."""
        for adapter, delta in self.part.groups.items():
            yield adapter, delta, (taken.slots == self.bank.slot(adapter)).nonzero()[:, 0]

    def weights(self, taken: TokenAdapters, adapter: CompiledAdapter) -> torch.Tensor:
        """Return how much each token takes of an adapter: [tokens, 1]."""
        slot = self.bank.slot(adapter)
        return taken.slot_weights[:, slot : slot + 1]


class HookedEmbedding(Hooked):
    @property
    def changes_inputs(self) -> bool:
        return True

    def changed_inputs(self, module: Any, inputs: Inputs) -> Inputs:
        self._ids = inputs[0]  # as they were: only a row with a larger vocabulary has ids beyond the base's
        return (inputs[0].clamp(max=module.num_embeddings - 1), *inputs[1:])

    def changed(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        ids = self._ids.reshape(-1)
        taken = self.taken(self._ids.shape)
        y = output.reshape(ids.shape[0], -1)
        scale = getattr(module, "embed_scale", 1.0)
        for adapter, delta, tokens in self.groups(taken):
            if delta.rows is not None and len(delta.rows.index):
                at = torch.searchsorted(delta.rows.index, ids[tokens]).clamp(max=len(delta.rows.index) - 1)
                own = delta.rows.index[at] == ids[tokens]
                y[tokens[own]] = (delta.rows.weight[at[own]] * scale).to(y.dtype)
            if delta.prompt is not None:
                at = taken.positions[tokens]
                virtual = (at >= 0) & (at < delta.prompt.shape[0])
                y[tokens[virtual]] = delta.prompt[at[virtual]].to(y.dtype)
            if delta.low_rank is not None:
                weight = self.weights(taken, adapter)
                takers = (weight[:, 0] != 0).nonzero()[:, 0]
                made = delta.low_rank.a[:, ids[takers]].T @ delta.low_rank.b
                y[takers] += (made * weight[takers] * scale).to(y.dtype)
        return y.view(output.shape)


class HookedNorm(Hooked):
    """A norm of tokens, or of the heads of queries and keys: [rows, tokens, heads, ·] or [rows, heads, tokens, ·]."""

    def changed(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        x = inputs[0]
        if len(inputs) != 1 or output.shape != x.shape:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"`{self.part.path}` takes more than what it normalises",
                hint="train the adapter without this module, or merge it with peft's merge_and_unload()",
            )
        if x.dim() == 4 and self._is_heads_first(x):
            return self._normed(module, x.transpose(1, 2), output.transpose(1, 2)).transpose(1, 2)
        return self._normed(module, x, output)

    def _normed(self, module: Any, x: torch.Tensor, output: torch.Tensor) -> torch.Tensor:
        by_heads = x.dim() == 4
        taken = self.taken(x.shape[: 2 if by_heads else -1])
        taken = taken.each(x.shape[2]) if by_heads else taken
        rows, y = x.reshape(-1, x.shape[-1]), output.reshape(-1, x.shape[-1])
        for _, delta, tokens in self.groups(taken):
            y[tokens] = with_parameters(module, delta.parameters).forward(rows[tokens]).to(y.dtype)
        return y.view(x.shape)

    def _is_heads_first(self, x: torch.Tensor) -> bool:
        """Tell whether the module's heads come before the tokens.

        A module hands its heads over in one order always; a pass of as many tokens as heads does not tell which order.
        """
        if x.shape[1] != x.shape[2]:
            self.part.heads_first = x.shape[0] * x.shape[1] != self.step.all.slots.shape[0]
        return self.part.heads_first


class HookedExperts(Hooked):
    """Experts: [tokens, hidden], and the experts of each token and their weights, [tokens, chosen]."""

    def changed(self, module: Any, inputs: Inputs, output: torch.Tensor) -> torch.Tensor:
        if len(inputs) != 3 or inputs[0].dim() != 2 or output.shape != inputs[0].shape:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"the model calls `{self.part.path}` in another way than Transformers' experts are",
                hint="train the adapter without the experts, or merge it with peft's merge_and_unload()",
            )
        x, experts, weights = inputs
        taken = self.taken(x.shape[:-1])
        beside = [
            WeightedDeltas(delta.experts, self.weights(taken, adapter)[:, 0])
            for adapter, delta in self.part.groups.items()
        ]
        own = torch.stack([adapter.weights != 0 for adapter in beside]).any(dim=0).nonzero()[:, 0]
        if len(own):
            mine = [WeightedDeltas(adapter.deltas, adapter.weights[own]) for adapter in beside]
            output[own] = experts_forward(module, x[own], experts[own], weights[own], mine).to(output.dtype)
        return output


class HookedRouter(Hooked):
    """A router: it gives scores, weights and experts of each token, all of them made of W·x."""

    def changed(self, module: Any, inputs: Inputs, output: Any) -> Any:
        x = inputs[0].reshape(-1, inputs[0].shape[-1])
        taken = self.taken(inputs[0].shape[:-1])
        weights = torch.cat([self.weights(taken, adapter) for adapter in self.part.groups], dim=1)
        deltas = [delta.low_rank for delta in self.part.groups.values()]
        made = [output] if isinstance(output, torch.Tensor) else list(output)
        for mix in torch.unique(weights, dim=0):
            if bool(mix.any()):
                own = (weights == mix).all(dim=1).nonzero()[:, 0]
                made = with_rows(made, own, x.shape[0], routed(module, x[own], mix, deltas))
        return made[0] if isinstance(output, torch.Tensor) else tuple(made)
