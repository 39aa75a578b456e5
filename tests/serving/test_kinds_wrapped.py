"""Models that take images as well, asked with text alone: the language model in them, with adapters of any layout."""

from __future__ import annotations

import json
import re
import warnings
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.tasks import Task
from graft_runtime.messages import BaseLoaded, Generate, Mounted, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file

from tests.support.oracle import greedy
from tests.support.wrapped import IMAGE, build_wrapped

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5, IMAGE, 8])
OLDER = {"earlier": "language_model.model.layers", "text model": "model.layers"}
"""How Transformers 4 called the layers, and how the language model by itself does."""


def renamed(adapter: Path, directory: Path, layers: str) -> Path:
    """The same adapter with its layers called otherwise."""
    tensors = load_file(adapter / "adapter_model.safetensors")
    config = json.loads((adapter / "adapter_config.json").read_text())
    directory.mkdir()
    moved = {
        re.sub(r"^base_model\.model\..*?layers", f"base_model.model.{layers}", name): tensor
        for name, tensor in tensors.items()
    }
    save_file(moved, directory / "adapter_model.safetensors")
    names = sorted({name.split(".")[-3] for name in tensors})
    (directory / "adapter_config.json").write_text(json.dumps(config | {"target_modules": names}))
    return directory


@pytest.mark.parametrize("family", ["gemma3", "mistral3", "llava", "qwen2_5_vl", "qwen3_vl"])
def test_text_in_and_out(family: str, in_process: Any, tmp_path: Path) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base, adapter = build_wrapped(family, tmp_path)
    engine = in_process(base)
    (loaded,) = engine.started
    assert isinstance(loaded, BaseLoaded)
    assert loaded.task is Task.CAUSAL_LM
    adapters = {"own": adapter} | {name: renamed(adapter, tmp_path / name, path) for name, path in OLDER.items()}
    for name, directory in adapters.items():
        assert isinstance(engine.mount(name, directory), Mounted), name
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_pretrained(base).eval()
        plain = [greedy(model, prompt) for prompt in PROMPTS]
        model = PeftModel.from_pretrained(model, adapter).eval()
    adapted = [greedy(model, prompt) for prompt in PROMPTS]
    assert adapted != plain
    submits, expected = [], {}
    for index, prompt in enumerate(PROMPTS):
        for whose in (None, *adapters):
            served = (ServedAdapter(whose, 1.0),) if whose else ()
            submits.append(Generate(f"{whose} {index}", list(prompt), 6, served, sampling=Sampling(temperature=0)))
            expected[f"{whose} {index}"] = (adapted if whose else plain)[index]
    assert engine.answers(submits) == expected
    assert engine.answers(submits[::-1]) == expected
