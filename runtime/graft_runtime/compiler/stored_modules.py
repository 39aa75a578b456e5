"""The modules of a base that is not loaded: what is asked for is read from its checkpoint."""

from __future__ import annotations

from pathlib import Path

import torch

from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.base.files import weight_files
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.model.load import empty_model
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.stored_weights import Place, StoredModule, find_place, read_spans
from graft_runtime.model.tasks import task_of
from graft_runtime.model.whole import layout_in


class StoredModules:
    """The modules of a checkpoint by their path.

    Args:
        base: a checkpoint in safetensors.
        task: what it is loaded for; None: what its config.json says.

    Attributes:
        task: what it is loaded for.
        layout: what it offers to adapters.

    Raises:
        GraftError: NotAModel, UnsafeFile, Corrupt.
    """

    def __init__(self, base: Path, task: Task | None = None) -> None:
        model = empty_model(base, name=base.name, task=task)
        self.task = task or task_of(model.config)
        self.layout = layout_in(base, model, base.name)
        self._modules = BaseModules(model)
        self._spans = read_spans(base, weight_files(base))
        self._holders = {head: embedding for embedding, head in self.layout.ties.items()}
        if self.layout.input_embedding is not None:
            self._holders |= dict.fromkeys(self.layout.twins, self.layout.input_embedding)

    def __call__(self, path: str) -> StoredModule:
        """Return the parameters of a module.

        Raises:
            GraftError: UnsupportedMethod for weights that the checkpoint keeps otherwise than the model.
        """
        module = self._modules(path)
        names = ["weight", *(["bias"] if module.bias is not None else [])]
        return StoredModule({name: self._place(path, name) for name in names})

    def compiled(self, files: AdapterFiles, dtype: torch.dtype) -> CompiledAdapter:
        """Compile an adapter as a mount does, on the CPU.

        Args:
            files: of the adapter.
            dtype: of the result.

        Raises:
            GraftError: what `compile_adapter` raises, and see `__call__`.
        """
        return compile_adapter(files, self.layout, self, dtype=dtype, device=torch.device("cpu"))

    def _place(self, path: str, name: str) -> Place:
        found = find_place(path, name, self._spans, self._modules, self.layout)
        if isinstance(found, Place):
            return found
        if name == "weight" and path in self._holders:
            return self._place(self._holders[path], name)
        raise GraftError(ErrorCode.UNSUPPORTED_METHOD, f"the base's weights can't be read from its files: {found}")
