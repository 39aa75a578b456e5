"""Whether an adapter fits a base that is not loaded: no weight of either is read."""

from __future__ import annotations

from pathlib import Path

from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.fit import fitted
from graft_runtime.model.layout import layout_of
from graft_runtime.model.load import empty_model


def check_fit(directory: Path, base: Path, *, name: str, max_rank: int) -> None:
    """That the modules of an adapter are in a base, and of its sizes.

    Args:
        directory: of the adapter.
        base: a checkpoint; its config.json is read.
        name: how errors call the adapter.
        max_rank: the highest rank of a module.

    Raises:
        GraftError: what a mount raises before it reads a weight.
    """
    files = read_adapter_files(directory, name=name, max_rank=max_rank)
    layout = layout_of(empty_model(base, name=base.name), base.name)
    fitted(files, layout)
