"""Random LoRA adapters for tiny models, saved by peft itself."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.bases import load_for

AdapterFactory = Callable[..., Path]


def build_adapter(
    base: Path,
    directory: Path,
    seed: int = 1,
    *,
    rows: int | None = None,
    task: str = "CAUSAL_LM",
    labels: int | None = None,
    **lora: Any,
) -> Path:
    """Save a random LoRA adapter for `base` with peft itself; `lora` goes to LoraConfig.

    Without `target_modules` every linear module is a target. With `rows`, the vocabulary had another size in training,
    with `labels` the head of a classifier.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    options: dict[str, Any] = {
        "task_type": task,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "init_lora_weights": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = load_for(task, base, labels)
        if rows is not None:
            model.resize_token_embeddings(rows)
        get_peft_model(model, LoraConfig(**(options | lora))).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> AdapterFactory:
    """`make_adapter(name, *, base=tiny_base, seed=…, **lora_config)`: a fresh directory, saved by peft."""

    def make(name: str, *, base: Path | None = None, seed: int | None = None, **lora: Any) -> Path:
        directory = tmp_path_factory.mktemp("adapters") / name
        return build_adapter(base or tiny_base, directory, sum(name.encode()) if seed is None else seed, **lora)

    return make


@pytest.fixture(scope="session")
def drift() -> Callable[[Path], Path]:
    """`drift(adapter)`: its modules get the names that they have below `AutoModel`, in place."""

    def drifted(adapter: Path) -> Path:
        from safetensors.torch import load_file, save_file

        weights = load_file(adapter / "adapter_model.safetensors")
        weights = {name.replace("model.model.layers", "model.layers"): tensor for name, tensor in weights.items()}
        save_file(weights, adapter / "adapter_model.safetensors")
        return adapter

    return drifted
