"""Folds adapters into a loaded base, module by module; nothing of the adapters stays in memory."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path

import torch

from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.addend import Addend
from graft_runtime.merge.sums import Sum
from graft_runtime.merge.ties import separable, separated_head, untie
from graft_runtime.messages import MergeSource
from graft_runtime.model.layout import LoadedModule, shared_weights
from graft_runtime.model.load import BaseModel
from graft_runtime.model.tasks import end_token

TRIAL_PROMPT = (3, 1, 2, 5)
"""Any tokens will do."""


def merge_into(base: BaseModel, sources: Sequence[MergeSource], *, max_rank: int) -> tuple[str | None, ...]:
    """Changes the weights of `base`. After an error they are half changed, and must not be served.

    Args:
        base: loaded, on its device.
        sources: the adapters, in the order of the sum.
        max_rank: the highest rank of a module.

    Returns:
        What was done to find the modules of each adapter, in words; None where they are where its files say.

    Raises:
        GraftError: what a mount of one of the adapters raises, and see `Addend.read` and `Sum`.
    """
    shared = shared_weights(base.model)
    shared -= separable(base.layout, shared)
    merged = Sum(
        [
            Addend.read(
                Path(source.directory),
                name=source.name,
                weight=source.weight,
                max_rank=max_rank,
                layout=base.layout,
                shared=shared,
            )
            for source in sources
        ]
    )
    was_finite = _trial(base, merged)
    if (head := separated_head(merged, base.layout)) is not None:
        untie(base.model, head)
    with torch.no_grad():
        for path in merged.paths:
            module = LoadedModule(base.model.get_submodule(path))
            for name, tensor in merged.onto(path, module).items():
                getattr(module, name).copy_(tensor)
    merged.check_effect()
    if was_finite and not _trial(base, merged):
        raise GraftError(
            ErrorCode.CORRUPT,
            f"with {merged.names} merged in, the model computes values that are not finite",
            hint="lower the weights, use a wider spec.baseModel.dtype, or train again",
        )
    return tuple(addend.files.remapped for addend in merged.addends)


def _trial(base: BaseModel, merged: Sum) -> bool:
    """One forward pass: whether what it gives is finite. Raises GraftError: NoEffect for modules that take no part."""
    reached: set[str] = set()
    handles = [
        base.model.get_submodule(path).register_forward_hook(lambda *_, path=path: reached.add(path))
        for path in merged.paths
    ]
    try:
        output = _output(base)
    finally:
        for handle in handles:
            handle.remove()
    for addend in merged.addends:
        if not reached & addend.parts.keys():
            raise GraftError(
                ErrorCode.NO_EFFECT,
                f"adapter `{addend.files.name}` changes nothing: the model calls none of its "
                f"{len(addend.parts)} modules",
                hint="train it on modules that take part in what the model computes",
            )
    return bool(torch.isfinite(output).all())


def _output(base: BaseModel) -> torch.Tensor:
    """What the model gives for a prompt, whatever its task: logits, those of starts, or hidden states."""
    prompt = [token % base.vocabulary_size for token in TRIAL_PROMPT]
    end = end_token(base.model.config)
    ids = torch.tensor([prompt if end is None else [*prompt, end]], device=base.device)
    answer = {"decoder_input_ids": ids} if base.task is Task.SEQ_2_SEQ_LM else {}
    offered = {"use_cache": False} if "use_cache" in inspect.signature(base.model.forward).parameters else {}
    with torch.inference_mode():
        made = base.model(input_ids=ids, return_dict=True, **answer, **offered)
    output: torch.Tensor = made[0]
    return output
