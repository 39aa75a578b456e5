"""The layout of a base that is not loaded: no weight of it is read."""

from __future__ import annotations

from pathlib import Path

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.contract.tasks import Task
from graft_runtime.model.load import empty_model
from graft_runtime.model.whole import layout_in


def stored_layout(base: Path, *, name: str, task: Task | None = None) -> BaseLayout:
    """Return the layout that a checkpoint offers to adapters; see `base_layouts`, which keeps the layout.

    Args:
        base: a checkpoint; its config.json is read.
        name: how errors call it.
        task: what it is to be loaded for; None: what its config.json says.

    Raises:
        GraftError: NotAModel, UnsafeFile.
    """
    return layout_in(base, empty_model(base, name=name, task=task), name)
