"""What Transformers is told to load a tiny base quantised as Graft does, and bases that are saved so."""

from __future__ import annotations

import shutil
from functools import partial
from pathlib import Path
from typing import Any


def loading(quantization: str | None) -> dict[str, Any]:
    """Return the arguments of `from_pretrained`; None: the checkpoint is saved quantised."""
    import torch
    from transformers import BitsAndBytesConfig, TorchAoConfig

    options: dict[str, Any] = {"device_map": {"": "cpu"}}
    if quantization in ("nf4", "fp4"):
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type=quantization,
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=torch.float32,
        )
    elif quantization == "int8":
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif quantization is not None:
        from torchao.quantization import Float8WeightOnlyConfig, Int8WeightOnlyConfig

        kinds = {"int8_weight_only": Int8WeightOnlyConfig, "float8_weight_only": Float8WeightOnlyConfig}
        options["quantization_config"] = TorchAoConfig(kinds[quantization]())
    return options


def mend(model: Any) -> None:
    """Let a model of bitsandbytes compute on any CPU what it computes on a GPU.

    On processors with bfloat16 it would round the scales, and PEFT's DoRA loses those of int8 after the first pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
        if hasattr(module, "init_8bit_state"):
            module.init_8bit_state = partial(_take_scales, module)


def _take_scales(module: Any) -> None:
    """Do as bitsandbytes does, and keep the scales that are there where the weight has lost them."""
    weight, state = module.weight, module.state
    state.CB, state.SCB = weight.CB, state.SCB if weight.SCB is None else weight.SCB
    weight.CB = weight.SCB = None


def save_quantised(base: Path, directory: Path, quantization: str) -> Path:
    """Save a base as Transformers does once it has loaded the base quantised, with the tokenizer of `base`."""
    import torch
    from transformers import AutoModelForCausalLM

    shutil.copytree(base, directory, ignore=shutil.ignore_patterns("*.safetensors", "config.json"))
    model: Any = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, **loading(quantization))
    model.save_pretrained(directory)
    return directory
