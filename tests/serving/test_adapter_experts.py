"""Adapters on the experts of a mixture: as PEFT saves stacked ones, and expert by expert as older files have them."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import Generate, Mounted, MountFailed, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file

from tests.support.methods import STACKED
from tests.support.oracle import greedy

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5])
WEIGHTS = "adapter_model.safetensors"
NAMES = {"mixtral": ("w1", "w3", "w2"), "qwen3_moe": ("gate_proj", "up_proj", "down_proj")}


def loaded(base: Path, adapter: Path | None = None) -> Any:
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model: Any = AutoModelForCausalLM.from_pretrained(base)
        return (PeftModel.from_pretrained(model, adapter) if adapter else model).eval()


def check(engine: Any, models: dict[str | None, Any]) -> None:
    """Every name on every prompt, together in two orders and one by one, against the models."""
    cases = [(name, prompt) for prompt in PROMPTS for name in models]
    submits = [
        Generate(
            f"{name} {len(prompt)}",
            list(prompt),
            6,
            (ServedAdapter(name, 1.0),) if name else (),
            sampling=Sampling(temperature=0),
        )
        for name, prompt in cases
    ]
    expected = {f"{name} {len(prompt)}": greedy(models[name], prompt) for name, prompt in cases}
    for name in models:
        if name:
            assert any(expected[f"{name} {len(prompt)}"] != expected[f"None {len(prompt)}"] for prompt in PROMPTS)
    assert engine.answers(submits) == expected
    assert engine.answers(submits[::-1]) == expected
    for submit in submits[:3]:
        assert engine.answers([submit]) == {submit.request: expected[submit.request]}


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss"])
def test_stacked_parameters(family: str, make_base: Callable[..., Path], make_adapter: Any, in_process: Any) -> None:
    base = make_base(family)
    adapters = {name: make_adapter(name, base=base, **options) for name, options in STACKED.items()}
    engine = in_process(base)
    for name, adapter in adapters.items():
        assert isinstance(engine.mount(name, adapter), Mounted), name
    models: dict[str | None, Any] = {None: loaded(base)}
    check(engine, models | {name: loaded(base, adapter) for name, adapter in adapters.items()})


def old_files(base: Path, directory: Path, family: str, *, rank_stabilized: bool) -> Path:
    """As PEFT saved an adapter before the experts were stacked; every expert and projection but one."""
    experts = "block_sparse_moe.experts" if family == "mixtral" else "mlp.experts"
    inner, generator, tensors = (48 if family == "mixtral" else 24), torch.Generator().manual_seed(3), {}
    for layer in range(2):
        for expert in range(4):
            for name, (outputs, inputs) in zip(NAMES[family], ((inner, 32), (inner, 32), (32, inner)), strict=True):
                if (layer, expert, name) != (1, 2, NAMES[family][1]):
                    path = f"base_model.model.model.layers.{layer}.{experts}.{expert}.{name}"
                    tensors[f"{path}.lora_A.weight"] = torch.randn(4, inputs, generator=generator)
                    tensors[f"{path}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator)
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": list(NAMES[family])}
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": rank_stabilized}))
    save_file(tensors, directory / WEIGHTS)
    return directory


def by_hand(base: Path, adapter: Path, family: str, scale: float) -> Any:
    """W + ΔW, expert by expert: PEFT scales rank-stabilized ones wrongly, and wants both halves."""
    model = loaded(base)
    tensors = load_file(adapter / WEIGHTS)
    gate, up, _ = NAMES[family]
    for name, a in tensors.items():
        if name.endswith("lora_A.weight"):
            path = name.removesuffix(".lora_A.weight").replace("block_sparse_moe", "mlp")
            parent, expert, projection = path.removeprefix("base_model.model.").rsplit(".", 2)
            delta = tensors[name.replace("lora_A", "lora_B")] @ a * scale
            module = model.get_submodule(parent)
            with torch.no_grad():
                if projection in (gate, up):
                    rows = module.gate_up_proj.shape[1] // 2
                    first = 0 if projection == gate else rows
                    module.gate_up_proj[int(expert), first : first + rows] += delta
                else:
                    module.down_proj[int(expert)] += delta
    return model


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_files_with_an_adapter_for_each_expert(
    family: str, make_base: Callable[..., Path], make_adapter: Any, in_process: Any, tmp_path: Path
) -> None:
    base = make_base(family)
    plain = old_files(base, tmp_path / "plain", family, rank_stabilized=False)
    stabilized = old_files(base, tmp_path / "stabilized", family, rank_stabilized=True)
    stacked = make_adapter("stacked", base=base, **STACKED["both"])
    engine = in_process(base)
    for name, adapter in {"plain": plain, "stabilized": stabilized, "stacked": stacked}.items():
        assert isinstance(engine.mount(name, adapter), Mounted), name
    models: dict[str | None, Any] = {
        None: loaded(base),
        "plain": by_hand(base, plain, family, 1.0),
        "stabilized": by_hand(base, stabilized, family, 4 / math.sqrt(4)),
        "stacked": loaded(base, stacked),
    }
    check(engine, models)


def test_what_does_not_fit(make_base: Callable[..., Path], make_adapter: Any, in_process: Any) -> None:
    base = make_base("mixtral")
    engine = in_process(base)
    changes: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
        "narrow": lambda tensor: tensor[:, :-1].contiguous(),
        "fewer": lambda tensor: tensor[: tensor.shape[0] // 2].contiguous(),
    }
    for key, change in changes.items():
        adapter = make_adapter(key, base=base, **STACKED["both"])
        tensors = load_file(adapter / WEIGHTS)
        name = next(name for name in tensors if "experts.lora_A" in name)
        save_file(tensors | {name: change(tensors[name])}, adapter / WEIGHTS)
        failed = engine.mount(key, adapter)
        assert isinstance(failed, MountFailed), key
        assert "experts" in str(failed.fault)


def test_lora_on_a_router_is_refused(make_base: Callable[..., Path], make_adapter: Any, in_process: Any) -> None:
    """As PEFT's `all-linear` makes it of a mixture."""
    base = make_base("mixtral")
    failed = in_process(base).mount("routed", make_adapter("routed", base=base))
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == "UnsupportedMethod"
    assert failed.fault.details == tuple(f"model.layers.{layer}.mlp.gate: MixtralTopKRouter" for layer in range(2))
    assert "all-linear" in (failed.fault.hint or "")
