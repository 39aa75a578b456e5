"""Adapters on disk made into a normal form on disk."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from graft_runtime.adapters.files import AdapterFiles
from graft_runtime.compiler.normal_form import NormalForm, normal_form
from graft_runtime.compiler.plain_lora import text_files, write_plain_lora
from graft_runtime.compiler.stored_modules import StoredModules
from graft_runtime.contract.tasks import Task
from graft_runtime.durable import new_directory


def write_normal_form(
    adapters: Sequence[tuple[AdapterFiles, float]],
    base: Path,
    output: Path,
    *,
    task: Task | None,
    dtype: str,
    max_rank: int,
) -> NormalForm:
    """Write plain LoRA that does what an adapter does, or a weighted sum of several.

    Args:
        adapters: each with its weight. One alone keeps its tokenizer and templates.
        base: a checkpoint in safetensors.
        output: a new directory, or an empty one.
        task: what the base is loaded for; None: what its config.json says.
        dtype: of the tensors, as torch calls it.
        max_rank: of a module.

    Raises:
        GraftError: what `normal_form` and `StoredModules` raise.
    """
    stored = StoredModules(base.resolve(), task)
    form = normal_form(adapters, stored, dtype=getattr(torch, dtype), max_rank=max_rank)
    first, _ = adapters[0]
    beside = text_files(first.directory) if len(adapters) == 1 else {}
    with new_directory(output) as partial:
        write_plain_lora(partial, form, stored.layout, task=stored.task, base_model=first.recipe.base_model)
        for name, content in beside.items():
            (partial / name).write_bytes(content)
    return form
