"""Trials: of an adapter, before a request may name it, and of what a model makes of one input in two ways.

The first adapter on some modules goes through the model, beside a row of the base. That shows which modules the model
calls and what they are given there, so that the next one is tried on that alone, module by module: a forward pass costs
more than all the rest of a mount, and every request waits for it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace

import torch
from torch.nn import functional

from graft_runtime.adapters.deltas import CompiledAdapter, LowRank
from graft_runtime.adapters.unused import check_called, pattern_of, unused
from graft_runtime.errors import ErrorCode, GraftError, shown
from graft_runtime.model.bank import Bank
from graft_runtime.model.load import BaseModel
from graft_runtime.model.rows import RowAdapter

TRIAL_PROMPT = (3, 1, 2, 5, 4, 1, 3, 2, 6, 5, 7)
"""Any tokens will do; no model has as many heads, or twice as many, which is how norms of heads are told apart."""
TOLERANCES = {torch.float32: 5e-4, torch.float16: 2e-2, torch.bfloat16: 6e-2}
"""Of the largest value. A mask or a scale that is wrong, or rows that are mixed up, are off by far more."""
LARGEST = 1e15
"""A change beyond it is none that was trained; its square still is a number in bfloat16 and float32."""

Forward = Callable[[Sequence[list[int]], Sequence[tuple[RowAdapter, ...]]], torch.Tensor]
"""Prompts and the adapters of each; returns the logits after each, [rows, vocabulary]."""


def trial_prompt(base: BaseModel) -> list[int]:
    """Return token ids that the model has."""
    return prompt_within(base.vocabulary_size)


def prompt_within(vocabulary: int) -> list[int]:
    """Return token ids below this one."""
    return [token % vocabulary for token in TRIAL_PROMPT]


def difference(made: torch.Tensor, expected: torch.Tensor) -> float:
    """Return the largest difference of two tensors, as a part of the largest value that was expected, or of 1."""
    largest = max(1.0, float(expected.abs().max()))
    return float((made.float() - expected.float()).abs().max()) / largest


def agree(made: torch.Tensor, expected: torch.Tensor, dtype: torch.dtype) -> bool:
    """Return whether two ways to compute the same in this dtype gave the same."""
    return made.shape == expected.shape and difference(made, expected) <= TOLERANCES[dtype]


def trial_row(base: BaseModel, length: int, index: int, end: int | None = None) -> list[int]:
    """Return tokens that mean nothing special, others for each index, with `end`, if there is one, at the end."""
    config = base.model.config.get_text_config()
    special = {getattr(config, f"{name}_token_id", None) for name in ("pad", "eos", "bos", "sep", "cls")}
    plain = [token for token in range(min(base.vocabulary_size, 256)) if token not in special]
    row = [plain[(place * place * 7 + place * 13 + index * 31) % len(plain)] for place in range(length)]
    return row if end is None else [*row[:-1], end]


@contextmanager
def trying(base: BaseModel) -> Iterator[None]:
    """Blame the base model for whatever its code raises inside `with`. Raises GraftError: NotAModel."""
    try:
        yield
    except (GraftError, torch.AcceleratorError, torch.OutOfMemoryError):
        raise
    except Exception as error:  # whatever a model raises
        what = f"{type(base.model).__name__} failed on a trial: {type(error).__name__}: {error}"
        raise cannot_serve(base, what, "use a model that takes text alone, and makes text or hidden states") from error


def cannot_serve(base: BaseModel, why: str, hint: str) -> GraftError:
    """Return why no runner can serve a base model that was loaded."""
    return GraftError(
        ErrorCode.NOT_A_MODEL,
        f"base model `{base.name}` can't be served: {why}",
        hint=hint,
        field="spec.baseModel.uri",
    )


@dataclass(frozen=True, eq=False)
class _Sample:
    """What a module was given once.

    Attributes:
        values: [1, features].
        sum: of their sizes.
    """

    values: torch.Tensor
    sum: float


class Trials:
    """The trials of the adapters on one model.

    Args:
        base: the model.
        bank: of the model.
        forward: takes prompts through it.
    """

    def __init__(self, base: BaseModel, bank: Bank, forward: Forward) -> None:
        self._base, self._bank, self._forward = base, bank, forward
        self._samples: dict[str, _Sample | None] = {}
        """By the path of a module; None: the model never calls it."""
        self._alone: torch.Tensor | None = None
        """What the base says of the trial prompt, once it was asked."""

    def run(self, adapter: CompiledAdapter, name: str) -> CompiledAdapter:
        """Check that an adapter can serve.

        Args:
            adapter: it need not be active.
            name: how errors call it.

        Returns:
            The adapter, its facts telling which of its modules the model never calls.

        Raises:
            GraftError: NoEffect when the model calls none of its modules, Corrupt when it overflows where the base
                does not, UnsupportedMethod when the model does not keep tokens in order, and the adapter changes what
                the base says beside it.
        """
        narrow = self._base.dtype == torch.float16  # what each module does may fit, and their sum not
        if narrow or adapter.facts.virtual_tokens or not adapter.modules.keys() <= self._samples.keys():
            self._run_model(adapter, name)
        if adapter.prefix is None:
            called = {path for path, sample in self._samples.items() if sample is not None}
            check_called(name, adapter.modules.keys(), called, "generating text")
        if not bool(self._largest_change(adapter) < LARGEST):
            raise _overflow(name)
        return self._with_unused(adapter)

    def _with_unused(self, adapter: CompiledAdapter) -> CompiledAdapter:
        """Tell which modules are never called; where one of several that differ in a number is, the others may be."""
        called = {pattern_of(path) for path in adapter.modules if self._samples[path] is not None}
        paths = [path for path in adapter.modules if pattern_of(path) not in called]
        told = "; ".join(filter(None, [adapter.facts.unused, unused(paths)]))
        return replace(adapter, facts=adapter.facts.model_copy(update={"unused": told})) if paths else adapter

    def _run_model(self, adapter: CompiledAdapter, name: str) -> None:
        given: dict[str, _Sample | None] = dict.fromkeys(adapter.modules)

        def keep(path: str, inputs: tuple[torch.Tensor, ...]) -> None:
            values = inputs[0].reshape(-1, inputs[0].shape[-1])[-1:].clone()  # of the base's row
            given[path] = _Sample(values, values.abs().sum(dtype=torch.float64).item())

        prompt, adapters = trial_prompt(self._base), (RowAdapter(adapter, 1.0),)
        self._bank.hold_for_trial(adapter)
        try:
            with self._base.modules.watched(adapter.modules, keep):
                logits = self._forward([[prompt[0]] * adapter.facts.virtual_tokens + prompt, prompt], [adapters, ()])
        finally:
            self._bank.release(adapters)
        adapted, plain = (logits < float("inf")).all(dim=-1).tolist()  # -inf: no token of this row's vocabulary
        if plain and not adapted:
            raise _overflow(name)
        if plain and not self._is_the_base_s(logits[1:], prompt):
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"adapter `{name}` changes what the base says in the same pass: the model hands one of its modules "
                "rows or tokens in an order of its own",
                details=shown([*adapter.modules]),
                hint="train the adapter without that module, or merge it with peft's merge_and_unload()",
            )
        self._samples |= given

    def _is_the_base_s(self, beside: torch.Tensor, prompt: list[int]) -> bool:
        """Tell whether the base says this of the trial prompt; the row of a larger vocabulary beside it widens it."""
        if self._alone is None:
            self._alone = self._forward([prompt], [()])
        return agree(beside[:, : self._alone.shape[1]], self._alone, self._base.dtype)

    def _largest_change(self, adapter: CompiledAdapter) -> torch.Tensor:
        """Return the largest value that a delta makes of its module's sample or holds in a vector; NaN if any is NaN.

        A module whose change can't be beyond LARGEST, whatever its values are, is not computed.
        """
        changes: list[torch.Tensor] = []
        for path, delta in adapter.modules.items():
            given, low_rank = self._samples[path], delta.low_rank
            if given is not None and low_rank is not None and _may_be_large(given, low_rank):
                changes.append(functional.linear(given.values.to(low_rank.a.dtype), low_rank.a) @ low_rank.b)
            vectors = (delta.offset, delta.gain, delta.shift, delta.input_gain, delta.prompt)
            changes += [vector for vector in vectors if vector is not None]
        return torch.cat([change.flatten() for change in changes]).abs().amax() if changes else torch.zeros(())


def _may_be_large(given: _Sample, low_rank: LowRank) -> bool:
    """Tell whether x·aᵀ·b may be beyond LARGEST: |x·aᵀ·b| ≤ r · max|a| · Σ|x| · max|b|.

    An embedding is given no values to go by.
    """
    rank, features = low_rank.a.shape
    return given.values.shape[1] == features and not rank * low_rank.largest * low_rank.largest * given.sum < LARGEST


def _overflow(name: str) -> GraftError:
    return GraftError(
        ErrorCode.CORRUPT,
        f"adapter `{name}` computes values that are not finite",
        hint="its weights overflow the dtype of the model; use a wider spec.baseModel.dtype, or train it again",
    )
