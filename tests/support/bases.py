"""Tiny random models, made on the spot: seconds, no download."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

CHAT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}<{{ message['role'] }}>{{ message['content'] }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
MODEL_VOCABULARY = 320
"""Rows of the embedding; the tokenizer knows fewer."""
TOKENS: dict[str, Any] = {"vocab_size": MODEL_VOCABULARY, "bos_token_id": 256, "eos_token_id": 257, "pad_token_id": 258}
UNTIED: dict[str, Any] = TOKENS | {"tie_word_embeddings": False}
"""A tied random model repeats its last token."""
LIKE_LLAMA: dict[str, Any] = UNTIED | {
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 256,
}
WIDE: dict[str, Any] = {"hidden_size": 256, "intermediate_size": 1024, "max_position_embeddings": 2048}
"""Large enough for a step to take what HTTP around it takes, and for a singular value decomposition to take longer."""
BART: dict[str, Any] = TOKENS | {
    "d_model": 32,
    "encoder_layers": 2,
    "decoder_layers": 2,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 48,
    "decoder_ffn_dim": 48,
    "max_position_embeddings": 128,
    "decoder_start_token_id": 257,
    "forced_eos_token_id": None,
}
T5: dict[str, Any] = {
    "d_model": 32,
    "d_kv": 8,
    "d_ff": 48,
    "num_layers": 2,
    "num_heads": 4,
    "relative_attention_num_buckets": 8,
    "relative_attention_max_distance": 16,
    "decoder_start_token_id": 258,
}

BaseFactory = Callable[..., Path]


def torch_on_one_thread() -> None:
    """Let torch use one thread: tiny matrices are slower on many threads, and the machine has other work."""
    import torch

    torch.set_num_threads(1)


def save_tokenizer(directory: Path) -> None:
    """Save a byte-level BPE without merges: 256 bytes and three special tokens (`<s>` 256, `</s>` 257, `<pad>` 258)."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={letter: index for index, letter in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", pad_token="<pad>", chat_template=CHAT_TEMPLATE
    )
    fast.save_pretrained(directory)


def _configs() -> dict[str, Callable[[], Any]]:
    import transformers as hf

    tokens: dict[str, Any] = {"bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": False}
    t5 = T5 | {"vocab_size": MODEL_VOCABULARY, "eos_token_id": 257, "pad_token_id": 258, "tie_word_embeddings": False}
    bart = BART | {"tie_word_embeddings": False}
    bert: dict[str, Any] = {
        "vocab_size": MODEL_VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 128,
        "num_labels": 3,
    }
    return {
        "bert": lambda: hf.BertConfig(**bert, pad_token_id=258),
        "roberta": lambda: hf.RobertaConfig(**bert, pad_token_id=1),
        "deberta": lambda: hf.DebertaV2Config(  # as microsoft/deberta-v3-base
            **bert,
            pad_token_id=258,
            relative_attention=True,
            position_buckets=8,
            max_relative_positions=-1,
            pos_att_type=["p2c", "c2p"],
            share_att_key=True,
            norm_rel_ebd="layer_norm",
            position_biased_input=False,
            type_vocab_size=0,
        ),
        "xlnet": lambda: hf.XLNetConfig(
            vocab_size=MODEL_VOCABULARY, d_model=32, n_layer=2, n_head=4, d_inner=48, num_labels=3, pad_token_id=258
        ),
        "llama": lambda: hf.LlamaConfig(**LIKE_LLAMA),
        "wide llama": lambda: hf.LlamaConfig(**LIKE_LLAMA | WIDE),
        "mistral": lambda: hf.MistralConfig(**LIKE_LLAMA, sliding_window=8),
        "tied": lambda: hf.LlamaConfig(**(LIKE_LLAMA | {"tie_word_embeddings": True})),
        "qwen2": lambda: hf.Qwen2Config(**LIKE_LLAMA),
        "qwen3": lambda: hf.Qwen3Config(**LIKE_LLAMA, head_dim=8),
        "gemma3": lambda: hf.Gemma3TextConfig(
            **LIKE_LLAMA, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "wide": lambda: hf.Gemma3TextConfig(  # of sizes that what is compiled takes on every processor
            **LIKE_LLAMA | {"hidden_size": 64, "intermediate_size": 96},
            head_dim=32,
            sliding_window=8,
            layer_types=["sliding_attention", "full_attention"],
        ),
        "gemma2": lambda: hf.Gemma2Config(  # softcaps, of attention as well
            **LIKE_LLAMA, head_dim=8, sliding_window=8, attn_logit_softcapping=3.0, final_logit_softcapping=30.0
        ),
        "gpt_oss": lambda: hf.GptOssConfig(  # attention sinks, experts
            **LIKE_LLAMA, head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
        ),
        "mixtral": lambda: hf.MixtralConfig(**LIKE_LLAMA, num_local_experts=4, num_experts_per_tok=2),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(
            **LIKE_LLAMA,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        "nemotron_h": lambda: hf.NemotronHConfig(  # experts without a gate
            **LIKE_LLAMA | {"num_hidden_layers": None},
            layers_block_type=["linear_attention", "moe", "full_attention", "moe"],
            head_dim=8,
            mamba_num_heads=4,
            mamba_head_dim=8,
            ssm_state_size=8,
            n_groups=2,
            chunk_size=4,
            n_routed_experts=4,
            moe_intermediate_size=24,
            moe_shared_expert_intermediate_size=24,
        ),
        "jamba": lambda: hf.JambaConfig(  # a state and attention in turn, experts in every second layer
            **LIKE_LLAMA,
            attn_layer_period=2,
            attn_layer_offset=1,
            expert_layer_period=2,
            expert_layer_offset=1,
            num_experts=4,
            mamba_d_state=8,
            mamba_dt_rank=4,
        ),
        "phi3": lambda: hf.Phi3Config(**LIKE_LLAMA),
        "gpt_neox": lambda: hf.GPTNeoXConfig(
            vocab_size=MODEL_VOCABULARY,
            hidden_size=32,
            intermediate_size=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            **tokens,
        ),
        "gpt2": lambda: hf.GPT2Config(
            vocab_size=MODEL_VOCABULARY, n_embd=32, n_layer=2, n_head=4, n_positions=256, **tokens
        ),
        "opt": lambda: hf.OPTConfig(
            vocab_size=MODEL_VOCABULARY,
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=48,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=256,
            pad_token_id=258,
            **tokens,
        ),
        "t5": lambda: hf.T5Config(**t5),
        "bart": lambda: hf.BartConfig(**bart),
        "bloom": lambda: hf.BloomConfig(vocab_size=MODEL_VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **tokens),
        "mamba": lambda: hf.MambaConfig(
            vocab_size=MODEL_VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=258, **tokens
        ),
    }


def auto_class(task: str) -> Any:
    """Return the class of Transformers that loads a model for this task of PEFT's."""
    import transformers as hf

    return {
        "CAUSAL_LM": hf.AutoModelForCausalLM,
        "SEQ_2_SEQ_LM": hf.AutoModelForSeq2SeqLM,
        "SEQ_CLS": hf.AutoModelForSequenceClassification,
        "TOKEN_CLS": hf.AutoModelForTokenClassification,
        "QUESTION_ANS": hf.AutoModelForQuestionAnswering,
        "FEATURE_EXTRACTION": hf.AutoModel,
    }[task]


def load_for(task: str, base: Path, labels: int | None = None) -> Any:
    """Load the base as Transformers does for a task; with another number of labels its head is fresh."""
    head = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    return auto_class(task).from_pretrained(base, **head).eval()


def build_base(directory: Path, family: str = "llama", seed: int = 0, task: str = "CAUSAL_LM") -> Path:
    """Save a tiny random model of this family, in float32, with a tokenizer and a chat template."""
    import torch

    torch_on_one_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        config = _configs()[family]()
        if task == "QUESTION_ANS":
            config.num_labels = 2
        model = auto_class(task).from_config(config)
        # Larger weights than a fresh model's: random logits must not tie, and adapters must show.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
        if family == "bart" and task == "SEQ_2_SEQ_LM":
            model.generation_config.forced_bos_token_id = 256
        model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> BaseFactory:
    """`make_base(family, task="CAUSAL_LM")`: the directory of a tiny random model; one a family, task and run."""
    built: dict[tuple[str, str], Path] = {}

    def make(family: str = "llama", task: str = "CAUSAL_LM") -> Path:
        if (family, task) not in built:
            built[family, task] = build_base(tmp_path_factory.mktemp(family) / "base", family, task=task)
        return built[family, task]

    return make


@pytest.fixture(scope="session")
def tiny_base(make_base: BaseFactory) -> Path:
    """A tiny random Llama in float32 with tokenizer and chat template. Read only."""
    return make_base("llama")
