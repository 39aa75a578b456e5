"""The normal form of adapters: plain LoRA that does exactly what they do, whichever method made them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from graft_runtime.adapters.compile import Values
from graft_runtime.adapters.deltas import CompiledAdapter, LowRank, ModuleDelta, Rows
from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.adapters.fit import fitted
from graft_runtime.adapters.parts.part import BaseModule
from graft_runtime.compiler.reducible import (
    certain_kinds,
    check_fitted,
    check_kinds,
    check_rank,
    check_weight,
    rank_too_high,
)
from graft_runtime.compiler.stored_modules import StoredModules
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.errors import ErrorCode, GraftError

LARGEST_CHANGE = 1000.0
"""The most that ΔW may be, as a multiple of the base's weight, by the norms of both: what is more came from a training
that diverged, and overflows as soon as it is computed with in half precision."""
LEAST_NORM = 1.0
"""The norm of a base's weight counts as at least this: one that is all zeros allows a ΔW as well."""


@dataclass(frozen=True, eq=False)
class NormalForm:
    """ΔW = B·A of each module, with every scale and weight folded into B."""

    modules: Mapping[str, LowRank]
    """By path."""
    facts: tuple[AdapterFacts, ...]
    """Of each adapter that is in it."""

    @property
    def rank(self) -> int:
        """Return the highest rank of a module."""
        return max(low_rank.a.shape[0] for low_rank in self.modules.values())


def normal_form(
    adapters: Sequence[tuple[AdapterFiles, float]], base: StoredModules, *, dtype: torch.dtype, max_rank: int
) -> NormalForm:
    """Make plain LoRA of an adapter, or of a weighted sum of several, in float32 and rounded once.

    Args:
        adapters: each with its weight.
        base: that they were trained for.
        dtype: of the result.
        max_rank: of a module.

    Raises:
        GraftError: UnsupportedMethod for what is not exactly plain LoRA, RankTooHigh, NoEffect; Corrupt for values that
            are not finite or absurdly large; and what `compile_adapter` raises.
    """
    name, alone = ", ".join(f"adapter `{files.name}`" for files, _ in adapters), len(adapters) == 1
    for files, weight in adapters:
        check_kinds(files)
        check_weight(files, weight, certain_kinds(files), alone=alone)
    placed = [fitted(files, base.layout) for files, _ in adapters]
    for files, own in placed:
        check_fitted(files, own, base.layout)
    check_rank(name, [files for files, _ in placed], max_rank)
    found: dict[str, list[LowRank]] = {}
    facts = []
    for files, weight in adapters:
        adapter = base.compiled(files, torch.float32)
        check_weight(files, weight, adapter.facts.deltas, alone=alone)
        facts.append(adapter.facts)
        for path, low_rank in _reduced(adapter, base, weight).items():
            found.setdefault(path, []).append(low_rank)
    modules = {path: _beside(low_ranks) for path, low_ranks in found.items()}
    for path, low_rank in modules.items():
        if low_rank.a.shape[0] > max_rank:
            raise rank_too_high(name, path, low_rank.a.shape[0], max_rank)
        _check_size(name, path, low_rank, base(path).weight)
    return NormalForm(_cast(name, modules, dtype), tuple(facts))


def _reduced(adapter: CompiledAdapter, base: StoredModules, weight: float) -> dict[str, LowRank]:
    """Return what an adapter does to each module as a low rank, its weight folded in."""
    found = {}
    for path, delta in adapter.modules.items():
        low_ranks = _low_ranks(delta, path, base)
        if low_ranks:
            low_rank = _beside(low_ranks)
            found[path] = LowRank(low_rank.a, low_rank.b * weight)
    return found


def _low_ranks(delta: ModuleDelta, path: str, base: StoredModules) -> list[LowRank]:
    low_ranks = [delta.low_rank] if delta.low_rank is not None else []
    if delta.rows is not None:
        of_rows = _of_rows(delta.rows, base(path), looked_up=path in base.layout.embeddings)
        low_ranks += [of_rows] if len(of_rows.a) else []
    return low_ranks


def _of_rows(rows: Rows, module: BaseModule, *, looked_up: bool) -> LowRank:
    """Return rows in the place of the base's as a low rank: a one for each row, and by how much it differs.

    Args:
        rows: as many as the base has in all.
        module: the base's.
        looked_up: whether the module is an embedding.
    """
    weight = module.weight
    if rows.bias is not None and module.bias is not None:
        assert torch.equal(rows.bias, module.bias[rows.index].float()), "trained rows leave the bias as it is"
    differences = rows.weight - weight[rows.index].float()
    differs = differences.any(dim=1)
    index, differences = rows.index[differs], differences[differs]
    ones = differences.new_zeros(len(index), weight.shape[0])
    ones[torch.arange(len(index)), index] = 1
    return LowRank(ones, differences) if looked_up else LowRank(differences, ones)


def _beside(low_ranks: Sequence[LowRank]) -> LowRank:
    """Return the sum of low ranks: their columns side by side."""
    return LowRank(torch.cat([each.a for each in low_ranks]), torch.cat([each.b for each in low_ranks]))


def _check_size(name: str, path: str, low_rank: LowRank, weight: torch.Tensor) -> None:
    """Check that ΔW is not absurdly large beside the base's weight. Raises GraftError: Corrupt."""
    a, b = low_rank.a.double(), low_rank.b.double()
    change = float(((a @ a.T) * (b @ b.T)).sum().clamp(min=0).sqrt())
    norm = float(torch.linalg.vector_norm(weight, dtype=torch.float32))
    if not change <= LARGEST_CHANGE * max(norm, LEAST_NORM):
        raise GraftError(
            ErrorCode.CORRUPT,
            f"{name} changes {path} by {change:.3g}, by the norm of ΔW, expected at most {LARGEST_CHANGE:g} times the "
            f"{norm:.3g} of the base's weight",
            hint="its training diverged, or a weight is too large; train it again",
        )


def _cast(name: str, modules: Mapping[str, LowRank], dtype: torch.dtype) -> dict[str, LowRank]:
    values, made = Values(name), {}
    for path, low_rank in modules.items():
        made[path] = low_rank.map(lambda tensor: tensor.to(dtype))
        values.note_cast(path, (made[path].a, made[path].b), dtype)
    values.check(bool(made))
    return made
