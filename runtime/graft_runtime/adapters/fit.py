"""Whether the parts of an adapter fit a base: every module is there, of the right kind and size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.parts.whole import WholeModule
from graft_runtime.errors import ErrorCode, GraftError, shown


def fit(parts: Sequence[Part], layout: BaseLayout, *, name: str, base_model: str | None) -> BaseLayout:
    """Checks an adapter against a base.

    Args:
        parts: of the adapter.
        layout: of the base.
        name: how errors call the adapter.
        base_model: what the adapter says that it was trained for.

    Returns:
        The layout with the sizes that the adapter's own embeddings and heads have.

    Raises:
        GraftError: BaseMismatch, ModuleMissing, ShapeMismatch, UnsupportedMethod.
    """
    layout = layout.resized(_own_rows(parts, layout))
    missing = [part for part in parts if layout.kind(part.path) is None]
    strange = [part for part in parts if layout.kind(part.path) not in (None, *part.kinds)]
    misfits = [fault for part in parts if part not in missing and part not in strange for fault in part.misfits(layout)]
    if strange:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` changes modules of a kind that its method does not go with here",
            details=shown([f"{part.path}: {layout.kind(part.path)}" for part in strange]),
            hint="name linear modules only in target_modules",
        )
    if missing or misfits:
        faults = [f"{part.path}: the model has no such module" for part in missing] + misfits
        count = sum(len(part.tensors) for part in missing) + len(misfits)
        total = sum(len(part.tensors) for part in parts)
        raise GraftError(
            _mismatch(missing, parts),
            f"adapter `{name}` can't be mounted on `{layout.name}`: {count} of {total} tensors don't fit",
            details=shown(faults),
            hint=_base_hint(base_model),
        )
    return layout


def _own_rows(parts: Sequence[Part], layout: BaseLayout) -> Mapping[str, int]:
    return {
        part.path: part.rows
        for part in parts
        if isinstance(part, WholeModule) and part.rows is not None and part.path in layout.resizable
    }


def _mismatch(missing: Sequence[Part], parts: Sequence[Part]) -> ErrorCode:
    if len(missing) == len(parts):
        return ErrorCode.BASE_MISMATCH
    return ErrorCode.MODULE_MISSING if missing else ErrorCode.SHAPE_MISMATCH


def _base_hint(base_model: str | None) -> str:
    trained = f"adapter_config.json names base model `{base_model}`; " if base_model else ""
    return f"{trained}set spec.baseModel to the model it was trained for, or train it for this one"
