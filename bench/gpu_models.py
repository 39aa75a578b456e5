"""Models and adapters with random weights for `gpu.py`: tiny ones of five families as files, a large one in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from graft_runtime.contract.tasks import Task
from graft_runtime.model.load import BaseModel
from graft_runtime.model.module_tree import layout_of
from safetensors.torch import save_file

CONTEXT = 4096
"""Tokens of the longest sequence of `make_base`."""
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
_TINY: dict[str, Any] = {
    "vocab_size": 320,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 256,
    "tie_word_embeddings": False,  # a tied random model repeats its last token
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
_WINDOWS: dict[str, Any] = {"sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"] * 2}
_EXPERTS: dict[str, Any] = {"num_local_experts": 4, "num_experts_per_tok": 2}
FAMILIES = {
    "Llama": (transformers.LlamaConfig, _TINY),
    "Qwen3": (transformers.Qwen3Config, _TINY),
    "Gemma 3 (windows)": (transformers.Gemma3TextConfig, _TINY | _WINDOWS),
    "GPT-OSS (sinks, experts)": (transformers.GptOssConfig, _TINY | _WINDOWS | _EXPERTS),
    "Mixtral (experts)": (transformers.MixtralConfig, _TINY | _EXPERTS),
}


def save_tiny_base(directory: Path, family: str) -> None:
    """Save a random model of the family in float32. Its values are those of bfloat16: both dtypes load the same."""
    make_config, options = FAMILIES[family]
    torch.manual_seed(0)
    model = transformers.AutoModelForCausalLM.from_config(make_config(**options))
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:  # larger than a fresh model's: random logits must not tie
                parameter.normal_(0.0, 0.06)
            parameter.copy_(parameter.bfloat16())
    model.save_pretrained(directory)


def make_base(options: Mapping[str, Any], device: torch.device) -> BaseModel:
    """Return a Llama of this shape with random bfloat16 weights on the device."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(**options)
    with torch.device(device):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    model = model.eval().requires_grad_(False)
    return BaseModel(
        name="bench",
        task=Task.CAUSAL_LM,
        model=model,
        layout=layout_of(model, "bench"),
        context_length=CONTEXT,
        vocabulary_size=config.vocab_size,
    )


def projections(model: Any) -> dict[str, torch.nn.Linear]:
    """Return the linear modules of attention and of MLPs by their path."""
    modules = model.named_modules()
    return {path: part for path, part in modules if isinstance(part, torch.nn.Linear) and path.endswith(PROJECTIONS)}


def save_adapter(directory: Path, linears: Mapping[str, torch.nn.Linear], *, rank: int, seed: int, size: float) -> None:
    """Save a random LoRA adapter on all of these modules, in bfloat16, with an alpha of twice the rank.

    Args:
        directory: to make.
        linears: the modules by their path; the values are drawn on their device.
        rank: of A and B.
        seed: of the values.
        size: the standard deviation of A·x·B over that of x, about.
    """
    any_linear = next(iter(linears.values()))
    device = any_linear.weight.device
    generator = torch.Generator(device).manual_seed(seed)

    def drawn(rows: int, columns: int, deviation: float) -> torch.Tensor:
        values = torch.randn(rows, columns, generator=generator, device=device) * deviation
        return values.to(device="cpu", dtype=torch.bfloat16)

    tensors = {}
    for path, linear in linears.items():
        tensors[f"base_model.model.{path}.lora_A.weight"] = drawn(rank, linear.in_features, linear.in_features**-0.5)
        tensors[f"base_model.model.{path}.lora_B.weight"] = drawn(linear.out_features, rank, size * rank**-0.5 / 2)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": "bench",
        "r": rank,
        "lora_alpha": 2 * rank,
        "lora_dropout": 0.0,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "target_modules": sorted({path.rsplit(".", 1)[-1] for path in linears}),
    }
    directory.mkdir(parents=True)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(json.dumps(config))


def save_adapters(root: Path, model: Any, ranks: Sequence[int], *, size: float) -> list[Path]:
    """Save one adapter of each rank on the model's projections; return their directories."""
    linears = projections(model)
    directories = []
    for number, rank in enumerate(ranks):
        directories.append(root / f"adapter-{number}-rank-{rank}")
        save_adapter(directories[-1], linears, rank=rank, seed=number, size=size)
    return directories
