"""Models that take images as well, asked with text alone: the language model in them, with adapters of any layout."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode
from graft_runtime.merge.files import AdapterPath, merge_files
from graft_runtime.messages import BaseLoaded, Generate, Mounted, MountFailed, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file

from tests.support.merges import merge_source
from tests.support.oracle import greedy
from tests.support.wrapped import IMAGE, build_wrapped, save_wrapped_adapter

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


TOWER, TEXT, HEAD = "model.vision_tower.", "model.language_model.", "lm_head."
NAMES: dict[str, tuple[str, dict[str, str]]] = {
    "mistral3 up to 4.51": (
        "mistral3",
        {HEAD: "language_model.lm_head.", TOWER: "vision_tower.", TEXT: "language_model.model."},
    ),
    "llava up to 4.51": (
        "llava",
        {HEAD: "language_model.lm_head.", TOWER: "vision_tower.vision_model.", TEXT: "language_model.model."},
    ),
    "llava up to 4.57": ("llava", {TOWER: "model.vision_tower.vision_model."}),
}
"""How versions of Transformers called the parts of a model: today's names → theirs."""


@pytest.mark.parametrize("version", list(NAMES))
@pytest.mark.parametrize("head", ["saved", "adapted", "left alone"])
def test_tower_layers_and_head_by_their_former_names(version: str, head: str, in_process: Any, tmp_path: Path) -> None:
    family, former = NAMES[version]
    base, _ = build_wrapped(family, tmp_path)
    options: dict[str, Any] = {"saved": {"modules_to_save": ["embed_tokens", "lm_head"]}}.get(head, {})
    targets = ["q_proj", "v_proj", *(["lm_head"] if head == "adapted" else [])]
    today = save_wrapped_adapter(base, tmp_path / "today", target_modules=targets, **options)
    tensors = load_file(today / "adapter_model.safetensors")
    assert any(TOWER in name for name in tensors)
    older = tmp_path / "older"
    shutil.copytree(today, older)
    moved = {}
    for name, tensor in tensors.items():
        path = name.removeprefix("base_model.model.")
        start = next((start for start in former if path.startswith(start)), "")
        moved[f"base_model.model.{former.get(start, '')}{path.removeprefix(start)}"] = tensor
    save_file(moved, older / "adapter_model.safetensors")
    engine = in_process(base)
    for directory in (today, older):
        assert isinstance(engine.mount(directory.name, directory), Mounted)
    asked = [
        Generate(f"{name} {index}", list(prompt), 6, (ServedAdapter(name, 1.0),), sampling=Sampling(temperature=0))
        for name in ("today", "older")
        for index, prompt in enumerate(PROMPTS)
    ]
    made = engine.answers(asked)
    assert [made[f"older {index}"] for index in range(3)] == [made[f"today {index}"] for index in range(3)]


IN_WHOLE = {"qwen3_5": "model.visual.", "llama4": "vision_model.model.", "mllama": "model.vision_model."}
"""Models of which the text model alone is loaded: where their towers lie."""


@pytest.mark.parametrize("family", list(IN_WHOLE))
def test_an_adapter_for_the_whole_model_where_its_text_model_is_loaded(
    family: str, in_process: Any, tmp_path: Path
) -> None:
    from peft import PeftModel
    from transformers import AutoModelForImageTextToText

    base, _ = build_wrapped(family, tmp_path)
    targets = ["q_proj", "v_proj", "qkv", "linear_fc1", "lm_head"]
    adapter = save_wrapped_adapter(base, tmp_path / "whole", target_modules=targets)
    assert any(IN_WHOLE[family] in name for name in load_file(adapter / "adapter_model.safetensors"))
    engine = in_process(base)
    assert engine.started[0].task is Task.CAUSAL_LM
    mounted = engine.mount("whole", adapter)
    assert isinstance(mounted, Mounted), mounted
    assert IN_WHOLE[family] in (mounted.facts.unused or "")
    assert "language_model" in (mounted.facts.remapped or "")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForImageTextToText.from_pretrained(base).eval()
        prompts = [prompt for prompt in PROMPTS if IMAGE not in prompt]
        plain = [greedy(model, prompt) for prompt in prompts]
        model = PeftModel.from_pretrained(model, adapter).eval()
        expected = [greedy(model, prompt) for prompt in prompts]
    assert expected != plain

    def answers(asked: Any, *served: ServedAdapter) -> list[list[int]]:
        how = Sampling(temperature=0)
        made = asked.answers([Generate(str(n), list(p), 6, served, sampling=how) for n, p in enumerate(prompts)])
        return [made[str(number)] for number in range(len(prompts))]

    assert answers(engine) == plain
    assert answers(engine, ServedAdapter("whole", 1.0)) == expected
    assert answers(in_process(base, merge=(merge_source(adapter),))) == expected
    told: list[str] = []
    merge_files(base, [AdapterPath(adapter)], tmp_path / "output", tell=told.append)
    assert told[0].startswith("adapter `whole` is merged in part")
    assert answers(in_process(tmp_path / "output")) == expected


def test_an_adapter_for_a_tower_alone_has_no_effect(in_process: Any, tmp_path: Path) -> None:
    base, _ = build_wrapped("qwen3_5", tmp_path)
    adapter = save_wrapped_adapter(base, tmp_path / "tower", target_modules=["qkv"])
    failed = in_process(base).mount("tower", adapter)
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == ErrorCode.NO_EFFECT
    assert "the model calls none of its 2 modules" in failed.fault.what


def test_lora_on_a_convolution_is_refused_by_name(in_process: Any, tmp_path: Path) -> None:
    """As `proj` among the target modules makes it: it matches a tower's patch embedding."""
    base, _ = build_wrapped("qwen2_5_vl", tmp_path)
    adapter = save_wrapped_adapter(base, tmp_path / "all", target_modules=["q_proj", "v_proj", "qkv", "proj"])
    failed = in_process(base).mount("all", adapter)
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == ErrorCode.UNSUPPORTED_METHOD
    assert failed.fault.details == ("model.visual.patch_embed.proj: Conv3d",)
    assert "exclude_modules" in (failed.fault.hint or "")
