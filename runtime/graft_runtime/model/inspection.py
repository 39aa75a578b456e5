"""Whether an adapter fits a base that is not loaded: no weight of either is read."""

from __future__ import annotations

from pathlib import Path

from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.adapters.fit import fit
from graft_runtime.contract import AdapterInspection, Fault
from graft_runtime.errors import GraftError
from graft_runtime.inspection import inspect_adapter
from graft_runtime.model.layout import layout_of
from graft_runtime.model.load import empty_model


def inspect_on_base(directory: Path, base: Path, *, name: str, max_rank: int) -> AdapterInspection:
    """As `inspect_adapter`, and whether its modules are there and of its sizes.

    Args:
        directory: of the adapter.
        base: a checkpoint; its config.json is read.
        name: how errors call the adapter.
        max_rank: the pool's limit.
    """
    found = inspect_adapter(directory, name=name, max_rank=max_rank)
    if found.fault is not None:
        return found
    try:
        files = read_adapter_files(directory, name=name, max_rank=max_rank)
        layout = layout_of(empty_model(base, name=base.name), base.name)
        fit(files.parts, layout, name=name, base_model=files.recipe.base_model)
    except GraftError as error:
        return found.model_copy(update={"fault": Fault.of(error)})
    return found
