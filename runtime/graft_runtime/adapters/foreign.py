"""What stands where an adapter of PEFT's is expected, but was left otherwise by its trainer. Pure."""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from fnmatch import filter as matching

from graft_runtime.adapters.tensors import TensorSpan

_RANKS_OF_ADALORA = re.compile(r"\.lora_[ABE]$")
"""Its names end without `.weight`."""
_OTHERS: tuple[tuple[str, str, str], ...] = (
    (
        "adapter_model-*-of-*.safetensors",
        "an adapter whose weights are split into shards",
        "save it without max_shard_size, or put the tensors of all shards into one adapter_model.safetensors",
    ),
    (
        "adapters.safetensors",
        "an adapter of MLX, whose tensors lie transposed and under other names",
        "serve what `mlx_lm.fuse` makes of it as a base model, or convert it to PEFT's format",
    ),
    (
        "adapters.npz",
        "an adapter of MLX, whose tensors lie transposed and under other names",
        "serve what `mlx_lm.fuse` makes of it as a base model, or convert it to PEFT's format",
    ),
    (
        "adapter_[0-9]*.pt",
        "an adapter of torchtune under its own names, in a pickle",
        "save it with torchtune 0.5 or later, which writes an adapter_model.safetensors for PEFT as well",
    ),
    (
        "lora.safetensors",
        "an adapter of mistral-finetune, under Mistral's own names",
        "rename its tensors to PEFT's, or merge it and serve the result as a base model",
    ),
    (
        "*.pth.lora",
        "an adapter of LitGPT, in a pickle",
        "merge it with `litgpt merge_lora`, and serve what `litgpt convert_from_litgpt` makes of that as a base model",
    ),
    (
        "*.nemo",
        "an archive of NeMo",
        "export it with NeMo's `llm.export_ckpt(..., target='hf-peft')`",
    ),
    (
        "adapter_model-*-of-*.bin",
        "an adapter whose weights are split into shards, in pickles",
        "save it without max_shard_size, with save_pretrained(..., safe_serialization=True)",
    ),
    (
        "mp_rank_*_model_states.pt",
        "a checkpoint of DeepSpeed, whose weights are in shards",
        "set `stage3_gather_16bit_weights_on_model_save` and save it again with save_pretrained()",
    ),
    (
        "pytorch_lora_weights.safetensors",
        "an adapter of diffusers, for a model that makes images",
        "serve adapters of text models",
    ),
    (
        "*.gguf",
        "an adapter of llama.cpp",
        "point the URI at the adapter of PEFT's that it was converted from",
    ),
    (
        "zero_to_fp32.py",
        "a checkpoint of DeepSpeed, whose weights are in shards",
        "set `stage3_gather_16bit_weights_on_model_save` and save it again with save_pretrained()",
    ),
    (
        "pytorch_model_fsdp*",
        "a checkpoint of FSDP, whose weights are in shards",
        "save it again with `fsdp_state_dict_type: FULL_STATE_DICT`",
    ),
    (
        "*.distcp",
        "a distributed checkpoint of torch, whose weights are in shards",
        "gather the weights and save them with peft's save_pretrained()",
    ),
    (
        "model*.safetensors",
        "a whole model",
        "name it in spec.baseModel, or point the URI at the adapter that peft's save_pretrained() wrote",
    ),
)
"""Name of a file or folder that tells, what it tells, and what to do. The first that matches counts."""


def what_else(names: Collection[str]) -> tuple[str, str] | None:
    """Return what a directory holds that is no adapter of PEFT's, and what to do; None where the names don't tell.

    Args:
        names: what the directory holds.
    """
    for pattern, what, hint in _OTHERS:
        if found := sorted(matching(names, pattern)):
            return f"{found[0]} is of {what}", hint
    return None


def ungathered(tensors: Mapping[str, TensorSpan]) -> list[str]:
    """Return the names of tensors that one process of a sharded training wrote without the others' shards.

    AdaLoRA's are no such ones: it gives ranks away, all of a module's if need be.
    """
    return [
        name
        for name, span in tensors.items()
        if (0 in span.shape and not _RANKS_OF_ADALORA.search(name))
        or (len(span.shape) < 2 and name.endswith((".lora_A.weight", ".lora_B.weight")))
    ]
