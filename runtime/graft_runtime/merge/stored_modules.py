"""The modules of a base that is not loaded: what is asked for is read from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.merge.files import weight_files
from graft_runtime.merge.places import Place, StoredModule, find_place, read_spans
from graft_runtime.model.load import empty_model
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.whole import layout_in


def compile_on_stored(files: AdapterFiles, base: Path, *, task: Task | None, dtype: str) -> CompiledAdapter:
    """Compile an adapter as a mount does, on the CPU.

    Args:
        files: of the adapter.
        base: a checkpoint in safetensors.
        task: what it is loaded for; None: what its config.json says.
        dtype: of its weights once it is loaded.

    Raises:
        GraftError: what `compile_adapter` raises; UnsupportedMethod for weights that the checkpoint keeps otherwise
            than the model.
    """
    model = empty_model(base, name=base.name, task=task)
    layout = layout_in(base, model, base.name)
    modules = _StoredModules(base, BaseModules(model), layout)
    return compile_adapter(files, layout, modules, dtype=getattr(torch, dtype), device=torch.device("cpu"))


class _StoredModules:
    """The modules of a checkpoint by their path."""

    def __init__(self, base: Path, modules: BaseModules, layout: BaseLayout) -> None:
        self._modules, self._layout = modules, layout
        self._spans = read_spans(base, weight_files(base))
        self._ties = {head: embedding for embedding, head in layout.ties.items()}

    def __call__(self, path: str) -> StoredModule:
        module = self._modules(path)
        names = ["weight", *(["bias"] if module.bias is not None else [])]
        return StoredModule({name: self._place(path, name) for name in names})

    def _place(self, path: str, name: str) -> Place:
        found = find_place(path, name, self._spans, self._modules, self._layout)
        if found is None:
            return self._place(self._ties[path], name)
        if isinstance(found, str):
            raise GraftError(ErrorCode.UNSUPPORTED_METHOD, f"the base's weights can't be read from its files: {found}")
        return found
