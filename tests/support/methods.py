"""Adapters of PEFT's methods with random values, saved by peft itself."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

EVERY = "all-linear"
"""Every linear module."""
METHODS: dict[str, tuple[str, dict[str, Any]]] = {
    "adalora": ("AdaLoraConfig", {"init_r": 6, "lora_alpha": 20, "total_step": 10, "target_modules": EVERY}),
    "ia3": ("IA3Config", {"target_modules": ["q_proj", "down_proj"], "feedforward_modules": ["down_proj"]}),
    "loha": ("LoHaConfig", {"r": 3, "alpha": 5, "target_modules": EVERY, "rank_pattern": {"q_proj": 2}}),
    "lokr": ("LoKrConfig", {"r": 2, "alpha": 3, "target_modules": EVERY, "alpha_pattern": {"v_proj": 8}}),
    "best vblora": (
        "VBLoRAConfig",
        {"r": 2, "num_vectors": 9, "vector_length": 8, "save_only_topk_weights": True, "target_modules": ["q_proj"]},
    ),
    "lokr of two": ("LoKrConfig", {"r": 1, "decompose_both": True, "target_modules": ["o_proj", "up_proj"]}),
    "vera": ("VeraConfig", {"r": 5, "target_modules": EVERY, "save_projection": True}),
    "vera again": ("VeraConfig", {"r": 5, "target_modules": EVERY, "save_projection": False, "projection_prng_key": 9}),
    "norms": ("LNTuningConfig", {"target_modules": ["input_layernorm", "norm"]}),
    "tokens": ("TrainableTokensConfig", {"token_indices": [5, 300, 2]}),
    "beft": ("BeftConfig", {"target_modules": ["q_proj", "up_proj"]}),
    "miss": ("MissConfig", {"r": 5, "target_modules": EVERY}),
    "small miss": (
        "MissConfig",
        {"r": 4, "mini_r": 8, "init_weights": "mini", "target_modules": EVERY},
    ),
    "hra": ("HRAConfig", {"r": 4, "target_modules": EVERY, "init_weights": False}),
    "orthogonal hra": ("HRAConfig", {"r": 3, "target_modules": EVERY, "init_weights": False, "apply_GS": True}),
    "delora": ("DeloraConfig", {"r": 4, "target_modules": EVERY, "rank_pattern": {"q_proj": 2}}),
    "gralora": ("GraloraConfig", {"r": 4, "alpha": 6, "gralora_k": 2, "target_modules": EVERY}),
    "hybrid gralora": ("GraloraConfig", {"r": 4, "gralora_k": 4, "hybrid_r": 3, "target_modules": ["q_proj"]}),
    "vblora": ("VBLoRAConfig", {"r": 3, "num_vectors": 12, "vector_length": 16, "topk": 3, "target_modules": EVERY}),
    "unilora": ("UniLoraConfig", {"r": 3, "theta_d_length": 99, "save_indices": True, "target_modules": EVERY}),
    "saved": ("IA3Config", {"target_modules": ["v_proj"], "feedforward_modules": [], "modules_to_save": ["lm_head"]}),
}
BOTH = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]
STACKED: dict[str, dict[str, Any]] = {
    "both": {"target_parameters": BOTH, "target_modules": ["q_proj"]},
    "down": {"target_parameters": BOTH[1:], "target_modules": ["v_proj"], "r": 2},
    "gate": {"target_parameters": BOTH[:1], "target_modules": ["q_proj"], "use_rslora": True},
    "ungated": {"target_parameters": ["experts.up_proj", "experts.down_proj"], "target_modules": ["q_proj"]},
    "bare": {"target_parameters": ["gate_up_proj", "down_proj", "v_proj.weight"], "target_modules": ["q_proj"]},
}
"""On the stacked parameters of experts: what LoraConfig is told."""


def save_method(
    base: Path, directory: Path, config: str, options: dict[str, Any], *, seed: int, rows: int = 320
) -> Path:
    """Save an adapter of random values with peft itself; in training the vocabulary had this many rows."""
    import peft
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        if rows != 320:
            model.resize_token_embeddings(rows)
        model = peft.get_peft_model(model, getattr(peft, config)(task_type="CAUSAL_LM", **options))
        generator = torch.Generator().manual_seed(seed)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
        model.save_pretrained(directory)
    return directory


def save_prompt(base: Path, directory: Path, method: str, tokens: int = 5) -> Path:
    """Save an adapter of prompt tuning, P-tuning or prefix tuning with peft itself."""
    import peft
    from transformers import AutoModelForCausalLM

    config = {"prompt": peft.PromptTuningConfig, "p": peft.PromptEncoderConfig, "prefix": peft.PrefixTuningConfig}
    options: dict[str, Any] = {"encoder_hidden_size": 16} if method == "p" else {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(tokens)
        task = config[method](task_type="CAUSAL_LM", num_virtual_tokens=tokens, **options)
        peft.get_peft_model(model, task).save_pretrained(directory)
    return directory
