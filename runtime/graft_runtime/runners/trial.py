"""The trial of an adapter, before a request may name it: it changes something, and nothing overflows.

The first adapter on some modules goes through the model, beside a row of the base. That shows which modules the model
calls and what they are given there, so that the next one is tried on that alone, module by module: a forward pass costs
more than all the rest of a mount, and every request waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch.nn import functional

from graft_runtime.adapters.deltas import CompiledAdapter, LowRank
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.bank import Bank, Sample
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter

TRIAL_PROMPT = (3, 1, 2, 5, 4, 1, 3, 2, 6, 5, 7)
"""Any tokens will do; no model has as many heads, or twice as many, which is how norms of heads are told apart."""

Forward = Callable[[Sequence[list[int]], Sequence[tuple[RowAdapter, ...]]], torch.Tensor]
"""Prompts and the adapters of each; returns the logits after each, [rows, vocabulary]."""


LARGEST = 1e15
"""A change beyond it is none that was trained; its square still is a number in bfloat16 and float32."""


def try_adapter(base: BaseModel, bank: Bank, adapter: CompiledAdapter, name: str, forward: Forward) -> None:
    """Raises GraftError unless the adapter can serve.

    Raises:
        GraftError: NoEffect when the model calls none of its modules, Corrupt when it overflows where the base does
            not, UnsupportedMethod when the model does not keep tokens in order.
    """
    narrow = base.dtype == torch.float16  # what each module does may fit, and their sum not
    if narrow or adapter.virtual_tokens or not adapter.modules.keys() <= bank.samples.keys():
        _try_on_model(base, bank, adapter, name, forward)
    if adapter.prefix is None and all(bank.samples[path] is None for path in adapter.modules):
        raise GraftError(
            ErrorCode.NO_EFFECT,
            f"adapter `{name}` changes nothing: the model calls none of its {len(adapter.modules)} modules",
            hint="train it on modules that take part in generating text",
        )
    if not bool(_largest_change(adapter, bank) < LARGEST):
        raise _overflow(name)


def _try_on_model(base: BaseModel, bank: Bank, adapter: CompiledAdapter, name: str, forward: Forward) -> None:
    given: dict[str, Sample | None] = dict.fromkeys(adapter.modules)

    def keep(path: str, inputs: tuple[torch.Tensor, ...]) -> None:
        values = inputs[0].reshape(-1, inputs[0].shape[-1])[-1:].clone()  # of the base's row
        given[path] = Sample(values, values.abs().sum(dtype=torch.float64).item())

    handles = [
        base.model.get_submodule(path).register_forward_pre_hook(lambda _, inputs, path=path: keep(path, inputs))
        for path in adapter.modules
    ]
    prompt = [token % base.vocabulary_size for token in TRIAL_PROMPT]
    adapters = (RowAdapter(adapter, 1.0),)
    bank.hold_for_trial(adapter)
    try:
        logits = forward([[prompt[0]] * adapter.virtual_tokens + prompt, prompt], [adapters, ()])
    finally:
        bank.release(adapters)
        for handle in handles:
            handle.remove()
    adapted, plain = (logits < float("inf")).all(dim=-1).tolist()  # -inf: no token of this row's vocabulary
    if plain and not adapted:
        raise _overflow(name)
    bank.samples |= given


def _largest_change(adapter: CompiledAdapter, bank: Bank) -> torch.Tensor:
    """Of what each module adds to what the model once gave it, and of the vectors beside that; NaN if one is.

    A module whose change can't be beyond LARGEST, whatever its values are, is not computed.
    """
    changes: list[torch.Tensor] = []
    for path, delta in adapter.modules.items():
        given, low_rank = bank.samples[path], delta.low_rank
        if given is not None and low_rank is not None and _may_be_large(given, low_rank):
            changes.append(functional.linear(given.values.to(low_rank.a.dtype), low_rank.a) @ low_rank.b)
        vectors = (delta.offset, delta.gain, delta.shift, delta.input_gain, delta.prompt)
        changes += [vector for vector in vectors if vector is not None]
    return torch.cat([change.flatten() for change in changes]).abs().amax() if changes else torch.zeros(())


def _may_be_large(given: Sample, low_rank: LowRank) -> bool:
    """Whether x·aᵀ·b could be: |x·aᵀ·b| ≤ r · max|a| · Σ|x| · max|b|. An embedding is given no values to go by."""
    rank, features = low_rank.a.shape
    return given.values.shape[1] == features and not rank * low_rank.largest * low_rank.largest * given.sum < LARGEST


def _overflow(name: str) -> GraftError:
    return GraftError(
        ErrorCode.CORRUPT,
        f"adapter `{name}` computes values that are not finite",
        hint="its weights overflow the dtype of the model; use a wider spec.baseModel.dtype, or train it again",
    )
