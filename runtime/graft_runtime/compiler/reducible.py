"""Which adapters are exactly plain LoRA: told by config and header, before a weight is read."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence

from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.adapters.keys import is_embedding, is_saved
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.methods.recipe import Saving
from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.parts.whole import TrainedTokens, WholeModule
from graft_runtime.contract.facts import ADDITIVE, DeltaKind
from graft_runtime.errors import ErrorCode, GraftError, shown

_WHY: Mapping[DeltaKind, str] = {
    DeltaKind.GAIN: "it multiplies features (DoRA, IA3), which takes ΔW of full rank",
    DeltaKind.SHIFT: "it has trained biases of the base",
    DeltaKind.OFFSET: "it adds a bias",
    DeltaKind.WHOLE: "it keeps modules whole",
    DeltaKind.EXPERTS: "it changes stacked experts, which plain LoRA has no names for",
    DeltaKind.PROMPT: "it puts virtual tokens before the prompt",
    DeltaKind.PREFIX: "it puts keys and values before the prompt",
    DeltaKind.INVOCATION: "it takes part in some tokens of a prompt only (aLoRA)",
}
"""Why an adapter that does this is no plain LoRA."""


def check_kinds(files: AdapterFiles) -> None:
    """Check that all that an adapter does is ΔW of a low rank, whatever its base.

    Raises:
        GraftError: UnsupportedMethod.
    """
    saved = files.recipe.saved if isinstance(files.recipe, Saving) else ()
    found: dict[DeltaKind, list[str]] = {DeltaKind.INVOCATION: []} if files.recipe.invocation else {}
    for part in files.parts:
        for kind in part.deltas - {DeltaKind.LOW_RANK}:
            if kind is not DeltaKind.WHOLE or not _of_rows(part, saved):
                found.setdefault(kind, []).append(part.path)
    _refuse(files.name, found)


def check_fitted(files: AdapterFiles, own: BaseLayout, base: BaseLayout) -> None:
    """Check the same of an adapter on its base, as `fitted` returns both.

    Args:
        files: of the adapter.
        own: the layout with the sizes that the adapter has.
        base: the layout of the base.

    Raises:
        GraftError: UnsupportedMethod.
    """
    if stacked := [part.path for part in files.parts if DeltaKind.EXPERTS in part.deltas]:
        _refuse(files.name, {DeltaKind.EXPERTS: stacked})
    resized = [path for path in own.embeddings if own.embeddings[path] != base.embeddings[path]]
    resized += [path for path in own.linear if own.linear[path] != base.linear[path]]
    if resized:
        raise _no_plain_lora(files.name, "it has a vocabulary or labels of its own", resized)


def check_weight(files: AdapterFiles, weight: float, kinds: Collection[DeltaKind], *, alone: bool) -> None:
    """Check that an adapter can be weighted and added to others, if it is.

    Args:
        files: of the adapter.
        weight: how much of it.
        kinds: what it does.
        alone: whether there are no others.

    Raises:
        GraftError: UnsupportedMethod; NoEffect for a weight of 0.
    """
    if weight == 0:
        raise GraftError(
            ErrorCode.NO_EFFECT,
            f"adapter `{files.name}` changes nothing: its weight is 0",
            hint="leave it out, or give it another weight",
        )
    if not (alone and weight == 1) and not ADDITIVE.issuperset(kinds):
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{files.name}` can't be weighted or added to others: it replaces rows of the base's weights",
            hint="convert it alone, with weight 1",
        )


def certain_kinds(files: AdapterFiles) -> frozenset[DeltaKind]:
    """Return what an adapter surely does; a copy of an embedding may repeat the base's."""
    return frozenset(kind for part in files.parts if not isinstance(part, WholeModule) for kind in part.deltas)


def check_rank(name: str, files: Sequence[AdapterFiles], max_rank: int) -> None:
    """Check the rank that each module will have, as far as the headers tell it.

    Args:
        name: how errors call the adapters together.
        files: of the adapters.
        max_rank: of a module.

    Raises:
        GraftError: RankTooHigh.
    """
    parts: dict[str, list[Part]] = {}
    for part in (part for each in files for part in each.parts):
        parts.setdefault(part.path, []).append(part)
    for path, together in parts.items():
        if (rank := sum(map(_rank, together))) > max_rank:
            raise rank_too_high(name, path, rank, max_rank, [part.why_rank for part in together if part.why_rank])


def rank_too_high(name: str, path: str, rank: int, max_rank: int, whys: Iterable[str] = ()) -> GraftError:
    """Return the fault of a module whose rank is over the highest one that may be written."""
    return GraftError(
        ErrorCode.RANK_TOO_HIGH,
        f"{name} is plain LoRA of rank {rank}, expected at most {max_rank}",
        details=[f"{path}: {why}" for why in whys] or [path],
        hint="take a higher --max-rank, if the engine that is to serve it does; or train with a lower r",
    )


def _of_rows(part: Part, saved: Collection[str]) -> bool:
    """Tell whether a part has rows of its own that may be few: of some tokens, or of a copy that PEFT wrote along."""
    if isinstance(part, WholeModule):
        return is_embedding(part.path) and not is_saved(part.path, saved)
    return isinstance(part, TrainedTokens)


def _rank(part: Part) -> int:
    return len(part.tokens) if isinstance(part, TrainedTokens) else part.rank


def _refuse(name: str, found: Mapping[DeltaKind, Sequence[str]]) -> None:
    for kind, why in _WHY.items():
        if kind in found:
            raise _no_plain_lora(name, why, found[kind])


def _no_plain_lora(name: str, why: str, paths: Sequence[str]) -> GraftError:
    return GraftError(
        ErrorCode.UNSUPPORTED_METHOD,
        f"adapter `{name}` is no plain LoRA: {why}",
        details=shown(paths),
        hint="serve it as it is, with Graft's own engine, or merge it into its base with `graft-runtime merge`",
    )
