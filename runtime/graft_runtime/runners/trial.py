"""The trial of an adapter: one forward pass beside a row of the base, before a request may name it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.bank import Bank
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter

TRIAL_PROMPT = (3, 1, 2, 5, 4, 1, 3, 2, 6, 5, 7)
"""Any tokens will do; no model has as many heads, or twice as many, which is how norms of heads are told apart."""

Forward = Callable[[Sequence[list[int]], Sequence[tuple[RowAdapter, ...]]], torch.Tensor]
"""Prompts and the adapters of each; returns the logits after each, [rows, vocabulary]."""


def try_adapter(base: BaseModel, bank: Bank, adapter: CompiledAdapter, name: str, forward: Forward) -> None:
    """One forward pass of this adapter beside the base's.

    Raises:
        GraftError: NoEffect when the model calls none of its modules, Corrupt when it overflows where the base does
            not, UnsupportedMethod when the model does not keep tokens in order.
    """
    reached: set[str] = set()
    handles = [
        base.model.get_submodule(path).register_forward_hook(lambda *_, path=path: reached.add(path))
        for path in adapter.modules
    ]
    prompt = [token % base.vocabulary_size for token in TRIAL_PROMPT]
    adapters = (RowAdapter(adapter, 1.0),)
    bank.hold_for_trial(adapter)
    try:
        logits = forward([prompt, prompt], [adapters, ()])
    finally:
        bank.release(adapters)
        for handle in handles:
            handle.remove()
    if not reached:
        raise GraftError(
            ErrorCode.NO_EFFECT,
            f"adapter `{name}` changes nothing: the model calls none of its {len(adapter.modules)} modules",
            hint="train it on modules that take part in generating text",
        )
    adapted, plain = (logits < float("inf")).all(dim=-1).tolist()  # -inf: no token of this row's vocabulary
    if plain and not adapted:
        raise GraftError(
            ErrorCode.CORRUPT,
            f"adapter `{name}` computes values that are not finite",
            hint="its weights overflow the dtype of the model; use a wider spec.baseModel.dtype, or train it again",
        )
