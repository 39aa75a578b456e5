"""Tiny random models of many families that generate: with windows, states, experts, relative positions."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support.bases import (
    BART,
    LIKE_LLAMA,
    MODEL_VOCABULARY,
    T5,
    TOKENS,
    UNTIED,
    save_tokenizer,
    torch_on_one_thread,
)

LIKE_GPT: dict[str, Any] = UNTIED | {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
LIKE_MPT: dict[str, Any] = UNTIED | {"d_model": 32, "n_layers": 2, "n_heads": 4, "max_seq_len": 256}
STATE: dict[str, Any] = UNTIED | {"hidden_size": 32, "num_hidden_layers": 2, "state_size": 8}
HYBRID: dict[str, Any] = LIKE_LLAMA | {
    "mamba_n_heads": 4,
    "mamba_d_head": 16,
    "mamba_d_state": 8,
    "mamba_d_ssm": 64,
    "mamba_n_groups": 1,
    "mamba_expand": 2,
}
LINEAR: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
EXPERTS: dict[str, Any] = {"num_experts": 4, "num_local_experts": 4, "num_experts_per_tok": 2}


def _paligemma(hf: Any) -> Any:
    text = hf.GemmaConfig(**LIKE_LLAMA, head_dim=8)
    tower = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    vision = hf.SiglipVisionConfig(**tower, image_size=28, patch_size=14, projection_dim=32)
    return hf.PaliGemmaConfig(text_config=text, vision_config=vision, image_token_index=310, projection_dim=32)


DECODERS: dict[str, Callable[[Any], Any]] = {
    "llama": lambda hf: hf.LlamaConfig(**LIKE_LLAMA),
    "mistral": lambda hf: hf.MistralConfig(**LIKE_LLAMA, sliding_window=8),
    "gemma2": lambda hf: hf.Gemma2Config(**LIKE_LLAMA, head_dim=8, sliding_window=8, attn_logit_softcapping=3.0),
    "gemma3": lambda hf: hf.Gemma3TextConfig(
        **LIKE_LLAMA, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
    ),
    "gpt_oss": lambda hf: hf.GptOssConfig(
        **LIKE_LLAMA, head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
    ),
    "cohere2": lambda hf: hf.Cohere2Config(**LIKE_LLAMA, sliding_window=8),
    "llama4": lambda hf: hf.Llama4TextConfig(
        **LIKE_LLAMA,
        head_dim=8,
        intermediate_size_mlp=48,
        num_local_experts=4,
        attention_chunk_size=8,
        layer_types=["chunked_attention", "full_attention"],
    ),
    "qwen3_moe": lambda hf: hf.Qwen3MoeConfig(
        **LIKE_LLAMA, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    "phi3": lambda hf: hf.Phi3Config(**LIKE_LLAMA),
    "gpt2": lambda hf: hf.GPT2Config(**LIKE_GPT),
    "opt": lambda hf: hf.OPTConfig(**LIKE_LLAMA, word_embed_proj_dim=32, ffn_dim=48),
    "gptj": lambda hf: hf.GPTJConfig(**LIKE_GPT, rotary_dim=4),
    "codegen": lambda hf: hf.CodeGenConfig(**LIKE_GPT, rotary_dim=4),
    "gpt_neo": lambda hf: hf.GPTNeoConfig(
        **UNTIED, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]], window_size=8
    ),
    "bloom": lambda hf: hf.BloomConfig(**UNTIED, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda hf: hf.MptConfig(**LIKE_MPT),
    "falcon": lambda hf: hf.FalconConfig(**LIKE_LLAMA, alibi=True, new_decoder_architecture=False),
    "mamba": lambda hf: hf.MambaConfig(**STATE),
    "mamba2": lambda hf: hf.Mamba2Config(**STATE, num_heads=4, head_dim=16, n_groups=1),
    "falcon_mamba": lambda hf: hf.FalconMambaConfig(**STATE),
    "jamba": lambda hf: hf.JambaConfig(
        **LIKE_LLAMA, **EXPERTS, attn_layer_offset=1, attn_layer_period=2, expert_layer_period=2, mamba_d_state=8
    ),
    "bamba": lambda hf: hf.BambaConfig(**HYBRID, attn_layer_indices=[1]),
    "falcon_h1": lambda hf: hf.FalconH1Config(**HYBRID),
    "granite_hybrid": lambda hf: hf.GraniteMoeHybridConfig(**HYBRID, layer_types=["mamba", "attention"]),
    "qwen3_next": lambda hf: hf.Qwen3NextConfig(
        **LIKE_LLAMA, **LINEAR, head_dim=8, num_experts=0, layer_types=["linear_attention", "full_attention"]
    ),
    "lfm2": lambda hf: hf.Lfm2Config(**LIKE_LLAMA, layer_types=["conv", "full_attention"]),
    "recurrent_gemma": lambda hf: hf.RecurrentGemmaConfig(
        **(LIKE_LLAMA | {"num_hidden_layers": 3}), head_dim=8, lru_width=32, attention_window_size=8
    ),
    "paligemma": _paligemma,
}
"""By the name that tests give them; what is handed in is Transformers."""
SEQ_2_SEQ: dict[str, Callable[[Any], Any]] = {
    "t5": lambda hf: hf.T5Config(**(TOKENS | T5)),
    "umt5": lambda hf: hf.UMT5Config(**(TOKENS | T5)),
    "long_t5": lambda hf: hf.LongT5Config(**(TOKENS | T5), local_radius=4),
    "bart": lambda hf: hf.BartConfig(**BART),
    "mbart": lambda hf: hf.MBartConfig(**BART),
    "pegasus": lambda hf: hf.PegasusConfig(**BART),
    "marian": lambda hf: hf.MarianConfig(**BART, decoder_vocab_size=MODEL_VOCABULARY),
    "m2m_100": lambda hf: hf.M2M100Config(**(BART | {"pad_token_id": 0})),
    "blenderbot": lambda hf: hf.BlenderbotConfig(**BART),
    "led": lambda hf: hf.LEDConfig(
        **(BART | {"max_position_embeddings": 1024}),
        attention_window=[8, 8],
        max_encoder_position_embeddings=128,
        max_decoder_position_embeddings=128,
    ),
    "fsmt": lambda hf: hf.FSMTConfig(
        **(BART | {"num_beams": 1}),
        langs=["en", "de"],
        src_vocab_size=MODEL_VOCABULARY,
        tgt_vocab_size=MODEL_VOCABULARY,
    ),
}


def auto_class(config: Any) -> Any:
    """Return the class of Transformers that makes a model of this config."""
    import transformers as hf

    if config.is_encoder_decoder:
        return hf.AutoModelForSeq2SeqLM
    return hf.AutoModelForImageTextToText if hasattr(config, "vision_config") else hf.AutoModelForCausalLM


def build_family(directory: Path, family: str) -> Any:
    """Save a model of this family, in float32, with a tokenizer; return it as Transformers loads it."""
    import torch
    import transformers as hf

    torch_on_one_thread()
    config = (DECODERS | SEQ_2_SEQ)[family](hf)
    made_by = auto_class(config)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = made_by.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
        model.save_pretrained(directory)
        save_tokenizer(directory)
        return made_by.from_pretrained(directory).eval()
