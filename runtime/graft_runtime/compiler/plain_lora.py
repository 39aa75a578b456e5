"""The files of a normal form: what PEFT saves for LoRA without options, and other engines read."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn.functional import pad

from graft_runtime.adapters.deltas import LowRank
from graft_runtime.adapters.files import CONFIG_FILE, WEIGHTS_FILE
from graft_runtime.adapters.keys import PREFIX
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.compiler.normal_form import NormalForm
from graft_runtime.contract.checkpoints import ADAPTER_FILE_PATTERNS
from graft_runtime.contract.tasks import Task


def write_plain_lora(
    directory: Path, form: NormalForm, layout: BaseLayout, *, task: Task, base_model: str | None
) -> None:
    """Write config and weights, with the same rank for every module: PEFT reads no other without an option.

    Args:
        directory: where the files go.
        form: of which ranks below the highest one are filled with zeros.
        layout: of the base.
        task: what the base is loaded for.
        base_model: what the adapter says that it was trained for.
    """
    config = {
        "peft_type": "LORA",
        "task_type": task.value,
        "base_model_name_or_path": base_model,
        "r": form.rank,
        "lora_alpha": form.rank,
        "target_modules": sorted(form.modules),
        "inference_mode": True,
    }
    (directory / CONFIG_FILE).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    tensors = {
        f"{PREFIX}{path}.{role}": tensor
        for path, low_rank in form.modules.items()
        for role, tensor in _tensors(low_rank, form.rank, looked_up=path in layout.embeddings).items()
    }
    save_file(tensors, directory / WEIGHTS_FILE, metadata={"format": "pt"})


def text_files(adapter: Path) -> Mapping[str, bytes]:
    """Return the files beside config and weights that belong to an adapter, by name: its tokenizer and templates."""
    names = [name for name in ADAPTER_FILE_PATTERNS if name not in (CONFIG_FILE, WEIGHTS_FILE)]
    return {name: (adapter / name).read_bytes() for name in names if (adapter / name).is_file()}


def _tensors(low_rank: LowRank, rank: int, *, looked_up: bool) -> dict[str, torch.Tensor]:
    """Return A [rank, in] and B [out, rank] under PEFT's names."""
    missing = (0, 0, 0, rank - low_rank.a.shape[0])
    a, b = pad(low_rank.a, missing), pad(low_rank.b, missing).T.contiguous()
    return {"lora_embedding_A": a, "lora_embedding_B": b} if looked_up else {"lora_A.weight": a, "lora_B.weight": b}
