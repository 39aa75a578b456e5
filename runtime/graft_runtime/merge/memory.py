"""Folds adapters into a loaded base, module by module; nothing of the adapters stays in memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch

from graft_runtime.adapters.unused import check_called
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.addend import Addend
from graft_runtime.merge.first_pass import effective, first_pass
from graft_runtime.merge.sums import Sum
from graft_runtime.merge.ties import separable, separated_head
from graft_runtime.messages import MergeSource
from graft_runtime.model.load import BaseModel
from graft_runtime.model.module_tree import layout_of


def merge_into(
    base: BaseModel, sources: Sequence[MergeSource], *, max_rank: int
) -> tuple[BaseModel, tuple[AdapterFacts, ...]]:
    """Fold adapters into the weights of `base`, whose memory the result takes over.

    Args:
        base: loaded, on its device.
        sources: the adapters, in the order of the sum.
        max_rank: the highest rank of a module.

    Returns:
        The merged model, and what each adapter is.

    Raises:
        GraftError: what a mount of one of the adapters raises, and see `Addend.read` and `Sum`. `base` has lost its
            weights if they were half changed.
    """
    shared = base.modules.shared_weights()
    shared -= separable(base.layout, shared)
    merged = Sum(
        [
            Addend.read(
                Path(source.directory),
                name=source.part.name,
                weight=source.part.weight,
                max_rank=max_rank,
                layout=base.layout,
                shared=shared,
            )
            for source in sources
        ]
    )
    merged, output, seen = effective(base.model, merged)
    was_finite = bool(torch.isfinite(output).all())
    for addend in merged.addends:
        check_called(addend.files.name, addend.parts.keys(), seen.called, "what the model computes")
    try:
        _write(base, merged, was_finite=was_finite)
    except Exception:
        base.model.to("meta")  # nobody can serve what is half merged
        raise
    return replace(base, layout=layout_of(base.model, base.name)), tuple(
        addend.files.facts for addend in merged.addends
    )


def _write(base: BaseModel, merged: Sum, *, was_finite: bool) -> None:
    if (head := separated_head(merged, base.layout)) is not None:
        base.modules.untie(head)
    for path in merged.paths:
        module = base.modules(path)
        for name, values in merged.onto(path, module).items():
            module.write(name, values)
    merged.check_effect()
    if was_finite and not bool(torch.isfinite(first_pass(base.model, ())[0]).all()):
        raise GraftError(
            ErrorCode.CORRUPT,
            f"with {merged.names} merged in, the model computes values that are not finite",
            hint="lower the weights, use a wider spec.baseModel.dtype, or train again",
        )
