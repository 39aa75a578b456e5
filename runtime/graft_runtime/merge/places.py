"""Where everything lies that a merge changes."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.errors import ErrorCode, GraftError, shown
from graft_runtime.merge.sums import Sum
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.stored_weights import Place, Spans, find_place

Places = Mapping[str, Mapping[str, Place]]
"""Path of a module → parameter → where it lies."""


def find_places(base: Path, spans: Spans, merged: Sum, modules: BaseModules, layout: BaseLayout) -> Places:
    """Find where everything lies that a merge changes.

    Args:
        base: the checkpoint.
        spans: of its files.
        merged: what changes.
        modules: of the model that its config.json makes.
        layout: of that.

    Raises:
        GraftError: UnsupportedMethod for what the files keep otherwise than the model.
    """
    places: dict[str, dict[str, Place]] = {}
    faults: list[str] = []
    for path in merged.paths:
        for parameter in merged.parameters(path):
            found = find_place(path, parameter, spans, modules, layout)
            if isinstance(found, str):
                faults.append(found)
            elif found is not None:
                places.setdefault(path, {})[parameter] = found
    if faults:
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"`{base.name}` keeps {len(faults)} of the modules to be merged in another layout than the model's own",
            details=shown(faults),
            hint="load it with Transformers, save it again with save_pretrained(), and merge into that",
        )
    return places
