"""Adapters on the experts of a mixture: as PEFT saves stacked ones, and expert by expert as older files have them."""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import Generate, Mounted, MountFailed, Sampling, ServedAdapter
from safetensors.torch import load_file, save_file

from tests.support.merges import merge_source
from tests.support.methods import STACKED
from tests.support.oracle import greedy

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5])
WEIGHTS = "adapter_model.safetensors"
LAYERS = "base_model.model.model.layers"
OLD: dict[str, tuple[list[str], dict[str, tuple[int, int]]]] = {
    "mixtral": (
        [f"{LAYERS}.{layer}.block_sparse_moe.experts.{{expert}}.{{name}}" for layer in range(2)],
        {"w1": (48, 32), "w3": (48, 32), "w2": (32, 48)},
    ),
    "qwen3_moe": (
        [f"{LAYERS}.{layer}.mlp.experts.{{expert}}.{{name}}" for layer in range(2)],
        {"gate_proj": (24, 32), "up_proj": (24, 32), "down_proj": (32, 24)},
    ),
    "gpt_oss": (  # as Unsloth trains it in 4 bits
        [f"{LAYERS}.{layer}.mlp.experts.{{name}}.{{expert}}" for layer in range(2)],
        {"gate_up_projs": (96, 32), "down_projs": (32, 48)},
    ),
    "nemotron_h": (  # no gate
        [f"base_model.model.backbone.layers.{layer}.mixer.experts.{{expert}}.{{name}}" for layer in (1, 3)],
        {"up_proj": (24, 32), "down_proj": (32, 24)},
    ),
}
"""How files call a projection of one expert, and its outputs and inputs by its name."""


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
    options = {name: options for name, options in STACKED.items() if name != "ungated"}
    adapters = {name: make_adapter(name, base=base, **options) for name, options in options.items()}
    engine = in_process(base)
    for name, adapter in adapters.items():
        assert isinstance(engine.mount(name, adapter), Mounted), name
    models: dict[str | None, Any] = {None: loaded(base)}
    check(engine, models | {name: loaded(base, adapter) for name, adapter in adapters.items()})


def old_files(directory: Path, family: str, *, rank_stabilized: bool) -> Path:
    """As PEFT saved an adapter before the experts were stacked; every expert and projection but one."""
    (paths, shapes), generator, tensors = OLD[family], torch.Generator().manual_seed(3), {}
    every = [(path, expert, name) for path in paths for expert in range(4) for name in shapes]
    for path, expert, name in every[:-1]:
        outputs, inputs = shapes[name]
        module = path.format(expert=expert, name=name)
        tensors[f"{module}.lora_A.weight"] = torch.randn(4, inputs, generator=generator)
        tensors[f"{module}.lora_B.weight"] = torch.randn(outputs, 4, generator=generator)
    targets = sorted({re.sub(r".*experts\.", "", path.format(expert=e, name=n)) for path, e, n in every})
    config = {"peft_type": "LORA", "r": 4, "lora_alpha": 4, "target_modules": targets}
    directory.mkdir()
    (directory / "adapter_config.json").write_text(json.dumps(config | {"use_rslora": rank_stabilized}))
    save_file(tensors, directory / WEIGHTS)
    return directory


def by_hand(base: Path, adapter: Path, family: str, scale: float) -> Any:
    """W + ΔW, expert by expert: PEFT scales rank-stabilized ones wrongly, and wants both halves."""
    model = loaded(base)
    tensors = load_file(adapter / WEIGHTS)
    for path in OLD[family][0]:
        for expert, name in [(expert, name) for expert in range(4) for name in OLD[family][1]]:
            a = tensors.get(f"{path.format(expert=expert, name=name)}.lora_A.weight")
            if a is None:
                continue
            delta = tensors[f"{path.format(expert=expert, name=name)}.lora_B.weight"] @ a * scale
            parent = path.partition(".experts.")[0].removeprefix("base_model.model.") + ".experts"
            module = model.get_submodule(parent.replace("block_sparse_moe", "mlp").replace("backbone", "model"))
            with torch.no_grad():
                if family == "gpt_oss":
                    module.get_parameter(name.removesuffix("s"))[expert] += delta.T
                elif family == "nemotron_h" or name in ("w2", "down_proj"):
                    module.get_parameter("down_proj" if name == "w2" else name)[expert] += delta
                else:
                    first = 0 if name in ("w1", "gate_proj") else delta.shape[0]
                    module.gate_up_proj[expert, first : first + delta.shape[0]] += delta
    return model


@pytest.mark.parametrize("family", list(OLD))
def test_files_with_an_adapter_for_each_expert(
    family: str, make_base: Callable[..., Path], make_adapter: Any, in_process: Any, tmp_path: Path
) -> None:
    base = make_base(family)
    plain = old_files(tmp_path / "plain", family, rank_stabilized=False)
    stabilized = old_files(tmp_path / "stabilized", family, rank_stabilized=True)
    stacked = make_adapter("stacked", base=base, **STACKED["ungated" if family == "nemotron_h" else "both"])
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


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe", "gpt_oss", "nemotron_h"])
def test_lora_on_a_router(family: str, make_base: Callable[..., Path], make_adapter: Any, in_process: Any) -> None:
    """PEFT's `all-linear` makes it of Mixtral's and Qwen's."""
    base = make_base(family)
    router = "router.weight" if family == "gpt_oss" else "gate.weight"
    adapters = {
        "router": make_adapter("router", base=base, target_modules=["q_proj"], target_parameters=[router]),
        "other": make_adapter("other", base=base, target_modules=["v_proj"], target_parameters=[router], r=2),
    }
    if family != "nemotron_h":  # of whose out_proj PEFT makes none
        adapters["everywhere"] = make_adapter("everywhere", base=base)
    engine = in_process(base)
    for name, adapter in adapters.items():
        assert isinstance(engine.mount(name, adapter), Mounted), name
    models: dict[str | None, Any] = {None: loaded(base)}
    check(engine, models | {name: loaded(base, adapter) for name, adapter in adapters.items()})
    both = (ServedAdapter("router", 0.5), ServedAdapter("other", -1.0))
    asked = [Generate(str(n), list(p), 6, both, sampling=Sampling(temperature=0)) for n, p in enumerate(PROMPTS)]
    sums = (merge_source(adapters["router"], "router", 0.5), merge_source(adapters["other"], "other", -1.0))
    merged = in_process(base, merge=sums)
    alone = [Generate(str(n), list(p), 6, sampling=Sampling(temperature=0)) for n, p in enumerate(PROMPTS)]
    assert engine.answers(asked) == merged.answers(alone)
    assert engine.answers(alone) != merged.answers(alone)


def test_parameters_that_the_base_lacks_are_passed_over(tiny_base: Path, make_adapter: Any, in_process: Any) -> None:
    """As PEFT does: it writes them for every model of a family that may have experts."""
    adapter = make_adapter("dense", base=tiny_base, target_modules=["q_proj"])
    set_config(adapter, target_parameters=["mlp.experts.gate_up_proj", "mlp.experts.down_proj"])
    engine = in_process(tiny_base)
    assert isinstance(engine.mount("dense", adapter), Mounted)
    check(engine, {None: loaded(tiny_base), "dense": loaded(tiny_base, adapter)})


def test_experts_that_the_config_names_and_the_file_lacks(
    make_base: Callable[..., Path], make_adapter: Any, in_process: Any
) -> None:
    base = make_base("mixtral")
    adapter = make_adapter("lost", base=base, target_modules=["q_proj"])
    set_config(adapter, target_parameters=["mlp.experts.down_proj"])
    failed = in_process(base).mount("lost", adapter)
    assert isinstance(failed, MountFailed)
    assert failed.fault.code == ErrorCode.CORRUPT
    assert failed.fault.details == tuple(
        f"target_parameters names model.layers.{layer}.mlp.experts.down_proj, no tensor is of it" for layer in range(2)
    )


def set_config(adapter: Path, **fields: Any) -> None:
    config = adapter / "adapter_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | fields))
