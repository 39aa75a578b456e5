"""Whether the parts of an adapter fit a base: every module is there, of the right kind and size."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import replace

from graft_runtime.adapters.files import AdapterFiles, facts_of
from graft_runtime.adapters.keys import is_saved
from graft_runtime.adapters.layout import ATTENTION, INPUT_EMBEDDING, BaseLayout
from graft_runtime.adapters.methods.recipe import Saving, Stacking, Targeting, misshapen
from graft_runtime.adapters.parts.experts import stacked
from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.parts.whole import WholeModule
from graft_runtime.adapters.remap import remap
from graft_runtime.adapters.unused import check_called, unused
from graft_runtime.errors import ErrorCode, GraftError, shown


def fitted(files: AdapterFiles, layout: BaseLayout) -> tuple[AdapterFiles, BaseLayout]:
    """Put an adapter on a base: its parts at the modules that they change, and the base as the adapter knows it.

    Of an adapter for the larger model that a base's checkpoint is of, what the base has of it.

    Returns:
        The adapter, its modules found again where they moved (`remap`); the layout as `fit` returns it.

    Raises:
        GraftError: as `fit` does; NoEffect when nothing of the adapter is in the base.
    """
    try:
        return _placed(files, layout)
    except GraftError as error:
        if layout.whole is None or error.code not in (ErrorCode.BASE_MISMATCH, ErrorCode.MODULE_MISSING):
            raise
        whole = layout.whole
    on_whole, _ = _placed(files, whole)
    places = {part.path: layout.from_whole(part.path) for part in on_whole.parts}
    parts = [replace(part, path=path) for part in on_whole.parts if (path := places[part.path]) is not None]
    left_out = [path for path, place in places.items() if place is None]
    if not parts:
        check_called(files.name, left_out, (), "the text model, which alone is loaded")
    facts = facts_of(files.recipe, parts, "; ".join(filter(None, [on_whole.facts.remapped, _told(layout)])))
    facts = facts.model_copy(update={"unused": unused(left_out)})
    own = fit(parts, layout, name=files.name, base_model=files.recipe.base_model)
    return replace(on_whole, parts=parts, facts=facts), own


def _told(layout: BaseLayout) -> str:
    moved = [f"{outer} → {inner}" for outer, inner in layout.inside.items() if outer != inner]
    return f"{', '.join(moved)} at the start of modules' names"


def _placed(files: AdapterFiles, layout: BaseLayout) -> tuple[AdapterFiles, BaseLayout]:

    def moved(names: Mapping[str, str]) -> list[Part]:
        return [replace(part, path=names.get(part.path, part.path)) for part in files.parts]

    def fits(names: Mapping[str, str]) -> bool:
        try:
            fit(moved(names), layout, name=files.name, base_model=None)
        except GraftError:
            return False
        return True

    if layout.experts:
        parts = stacked(files.parts, layout)
        files = replace(files, parts=parts, facts=facts_of(files.recipe, parts, files.facts.remapped))
    paths = list(dict.fromkeys(part.path for part in files.parts if part.path not in (INPUT_EMBEDDING, ATTENTION)))
    found = remap(paths, layout, fits)
    _check_depth(files, {path: path for path in paths} if found is None else found.names, layout)
    if found is not None:
        told = "; ".join(filter(None, [files.facts.remapped, found.told]))
        files = replace(files, parts=moved(found.names), facts=files.facts.model_copy(update={"remapped": told}))
    _check_named(files, layout)
    return files, fit(files.parts, layout, name=files.name, base_model=files.recipe.base_model)


_LAYER = re.compile(r"((?:[^.]+\.)*?)(\d{1,9})\.(.*)")
"""The first number of a path, and what is around it."""


def _check_depth(files: AdapterFiles, names: Mapping[str, str], layout: BaseLayout) -> None:
    """Check that no layer goes without what the config gives it.

    Where a layer does, the adapter was trained on a model with fewer layers. PEFT would make the missing modules anew,
    which do nothing, and only warn.

    Raises:
        GraftError: BaseMismatch.
    """
    recipe = files.recipe
    if not isinstance(recipe, Targeting):
        return
    stacks: dict[tuple[str, str], tuple[str, set[str]]] = {}
    for part in files.parts:
        own, here = _LAYER.fullmatch(part.path), _LAYER.fullmatch(names[part.path])
        if own and here and ((here[1], here[3]) in stacks or recipe.targeted(part.path)):
            stacks.setdefault((here[1], here[3]), (own[1], set()))[1].add(here[2])
    bare = []
    others = (layout.linear.keys() | layout.norms.keys()) - set(names.values())
    for match in filter(None, map(_LAYER.fullmatch, sorted(others))):
        prefix, layers = stacks.get((match[1], match[3]), ("", None))
        if layers is not None and match[2] not in layers and recipe.targeted(f"{prefix}{match[2]}.{match[3]}"):
            bare.append(match[0])
    if bare:
        raise GraftError(
            ErrorCode.BASE_MISMATCH,
            f"adapter `{files.name}` can't be mounted on `{layout.name}`: its config targets {len(bare)} modules "
            "that it has no tensors for",
            details=shown(bare),
            hint=f"it was trained for a model with fewer layers; {_base_hint(recipe.base_model)}; or name the layers "
            "that it has in layers_to_transform",
        )


def _check_named(files: AdapterFiles, layout: BaseLayout) -> None:
    """Check that a head or the experts that the config names are not left out of the file.

    A head may be left out where the base's own head has no name that PEFT knows. Parameters that a base lacks may be
    named: PEFT passes over them.

    Raises:
        GraftError: Corrupt.
    """
    recipe = files.recipe
    saved = recipe.saved if isinstance(recipe, Saving) else ()
    if saved and UNNAMED_HEAD not in layout.linear and not any(is_saved(part.path, saved) for part in files.parts):
        raise misshapen(files.name, [f"modules_to_save names {', '.join(saved)}, no tensor is of these"])
    stacks = [f"{path}.{name}" for path, shape in layout.experts.items() for name in shape.parameters]
    named = [path for path in stacks if isinstance(recipe, Stacking) and recipe.names_parameter(path)]
    if named and not any(part.path in layout.experts for part in files.parts):
        raise misshapen(files.name, [f"target_parameters names {path}, no tensor is of it" for path in named])


UNNAMED_HEAD = "classification_head.out_proj"
"""The classifier of T5 and BART. PEFT leaves it as it is, and writes the names of others into modules_to_save."""


def fit(parts: Sequence[Part], layout: BaseLayout, *, name: str, base_model: str | None) -> BaseLayout:
    """Check an adapter against a base.

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
    misfits = [fault for part in parts if layout.kind(part.path) in part.kinds for fault in part.misfits(layout)]
    if strange:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` changes modules of a kind that its method does not go with here",
            details=shown([f"{part.path}: {layout.kind(part.path)}" for part in strange]),
            hint="leave these out when it is trained (exclude_modules), or merge it with peft's merge_and_unload() "
            "and serve the result as a base model",
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
