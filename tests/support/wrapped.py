"""Tiny models that take images as well, and adapters for them with the layout of other trainers."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch

from tests.support.bases import LIKE_LLAMA, save_tokenizer, torch_on_one_thread

IMAGE = 310
"""Stands for an image in a prompt; without one it is a token like others."""
TOWER: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 28,
    "patch_size": 14,
}
UNSLOTH = (
    r"(?:.*?(?:language|text).*?(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense).*?"
    r"(?:k_proj|v_proj|q_proj|out_proj|o_proj|gate_proj|up_proj|down_proj).*?)|(?:\bmodel\.layers\.[\d]{1,}\."
    r"(?:self_attn|attention|attn|mlp|feed_forward|ffn|dense)\.(?:(?:k_proj|v_proj|q_proj|out_proj|o_proj)))"
)
"""What Unsloth writes into target_modules."""


def _qwen(**text: Any) -> dict[str, Any]:
    vision: dict[str, Any] = {
        "depth": 2,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_heads": 4,
        "out_hidden_size": 32,
    }
    tokens: dict[str, Any] = {"image_token_id": IMAGE, "video_token_id": 311, "vision_start_token_id": 312}
    return tokens | {"text_config": LIKE_LLAMA | text, "vision_config": vision, "tie_word_embeddings": False}


def _model(family: str) -> Any:
    import transformers as hf

    if family == "gemma3":
        layers = ["sliding_attention", "full_attention"]
        text: Any = hf.Gemma3TextConfig(**LIKE_LLAMA, head_dim=8, sliding_window=8, layer_types=layers)
        images = {"mm_tokens_per_image": 4, "image_token_index": IMAGE}
        config: Any = hf.Gemma3Config(text_config=text, vision_config=hf.SiglipVisionConfig(**TOWER), **images)
        return hf.Gemma3ForConditionalGeneration(config)
    if family == "mistral3":
        tower, text = hf.PixtralVisionConfig(**TOWER), hf.MistralConfig(**LIKE_LLAMA, head_dim=8)
        config = hf.Mistral3Config(text_config=text, vision_config=tower, image_token_index=IMAGE)
        return hf.Mistral3ForConditionalGeneration(config)
    if family == "llava":
        tower, text = hf.CLIPVisionConfig(**TOWER), hf.LlamaConfig(**LIKE_LLAMA)
        config = hf.LlavaConfig(text_config=text, vision_config=tower, image_token_index=IMAGE)
        return hf.LlavaForConditionalGeneration(config)
    if family in ("qwen3_5", "llama4", "mllama"):
        return _loaded_as_text(family)
    if family == "qwen2_5_vl":
        turned: dict[str, Any] = {"type": "mrope", "mrope_section": [1, 1, 2]}
        return hf.Qwen2_5_VLForConditionalGeneration(hf.Qwen2_5_VLConfig(**_qwen(rope_scaling=turned)))
    rope: dict[str, Any] = {"rope_type": "default", "mrope_section": [1, 1, 2], "mrope_interleaved": True}
    config = hf.Qwen3VLConfig(**_qwen(head_dim=8, rope_scaling=rope))
    config.vision_config.deepstack_visual_indexes = [0]
    return hf.Qwen3VLForConditionalGeneration(config)


def _loaded_as_text(family: str) -> Any:
    """Make a model in which the text model has a class of its own, which is loaded alone."""
    import transformers as hf

    text: dict[str, Any]
    vision: dict[str, Any]
    if family == "qwen3_5":
        text = dict(
            LIKE_LLAMA, head_dim=8, layer_types=["linear_attention", "full_attention"], linear_num_value_heads=4
        )
        text |= {"linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
        text |= {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "partial_rotary_factor": 1.0}}
        vision = _qwen()["vision_config"] | {"patch_size": 14}
        tokens = {"image_token_id": IMAGE, "video_token_id": 311, "vision_start_token_id": 312}
        config = hf.Qwen3_5Config(text_config=text, vision_config=vision, **tokens, tie_word_embeddings=False)
        return hf.Qwen3_5ForConditionalGeneration(config)
    if family == "llama4":
        text = LIKE_LLAMA | {
            "intermediate_size_mlp": 48,
            "head_dim": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 1,
        }
        text |= {"interleave_moe_layer_step": 2, "attention_chunk_size": 64}
        vision = dict(TOWER, vision_output_dim=32, projector_input_dim=32, projector_output_dim=32)
        config = hf.Llama4Config(text_config=text, vision_config=vision, image_token_index=IMAGE)
        return hf.Llama4ForConditionalGeneration(config)
    text = LIKE_LLAMA | {"cross_attention_layers": [1]}
    vision = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_global_layers": 1}
    vision |= {"attention_heads": 4, "image_size": 28, "patch_size": 14, "vision_output_dim": 64}
    vision |= {"intermediate_layers_indices": [1], "max_num_tiles": 1, "supported_aspect_ratios": [[1, 1]]}
    return hf.MllamaForConditionalGeneration(
        hf.MllamaConfig(text_config=text, vision_config=vision, image_token_index=IMAGE)
    )


def build_wrapped(family: str, directory: Path) -> tuple[Path, Path]:
    """Save a base, and an adapter for it that PEFT saved."""
    from peft import LoraConfig, get_peft_model

    torch_on_one_thread()
    torch.manual_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = _model(family)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
        model.save_pretrained(directory / "base")
        save_tokenizer(directory / "base")
        lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules=UNSLOTH, init_lora_weights=False)
        get_peft_model(model, lora).save_pretrained(directory / "adapter")
    return directory / "base", directory / "adapter"


def save_wrapped_adapter(base: Path, directory: Path, **lora: Any) -> Path:
    """Save an adapter that PEFT makes for the whole model; `lora` goes to LoraConfig."""
    import transformers as hf
    from peft import LoraConfig, get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = hf.AutoModelForImageTextToText.from_pretrained(base)
        torch.manual_seed(1)
        options = {"task_type": "CAUSAL_LM", "r": 4, "init_lora_weights": False} | lora
        get_peft_model(model, LoraConfig(**options)).save_pretrained(directory)
    return directory
