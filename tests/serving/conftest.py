"""Tiny random models and adapters, made on the spot: seconds, no download. `peft` saves them and is the oracle."""

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

BaseFactory = Callable[..., Path]
AdapterFactory = Callable[..., Path]


def torch_on_one_thread() -> None:
    """Tiny matrices are slower on many threads, and the machine has other work."""
    import torch

    torch.set_num_threads(1)


def save_tokenizer(directory: Path) -> None:
    """A byte-level BPE without merges: 256 bytes and three special tokens (`<s>` 256, `</s>` 257, `<pad>` 258)."""
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

    llama_like: dict[str, Any] = {
        "vocab_size": MODEL_VOCABULARY,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "bos_token_id": 256,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "tie_word_embeddings": False,  # a tied random model repeats its last token
    }
    tokens: dict[str, Any] = {"bos_token_id": 256, "eos_token_id": 257, "tie_word_embeddings": False}
    return {
        "llama": lambda: hf.LlamaConfig(**llama_like),
        "mistral": lambda: hf.MistralConfig(**llama_like, sliding_window=8),
        "tied": lambda: hf.LlamaConfig(**(llama_like | {"tie_word_embeddings": True})),
        "qwen2": lambda: hf.Qwen2Config(**llama_like),
        "qwen3": lambda: hf.Qwen3Config(**llama_like, head_dim=8),
        "gemma3": lambda: hf.Gemma3TextConfig(
            **llama_like, head_dim=8, sliding_window=8, layer_types=["sliding_attention", "full_attention"]
        ),
        "gemma2": lambda: hf.Gemma2Config(  # softcaps, of attention as well
            **llama_like, head_dim=8, sliding_window=8, attn_logit_softcapping=3.0, final_logit_softcapping=30.0
        ),
        "gpt_oss": lambda: hf.GptOssConfig(  # attention sinks, experts
            **llama_like, head_dim=8, sliding_window=8, num_local_experts=4, num_experts_per_tok=2
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
        "bloom": lambda: hf.BloomConfig(vocab_size=MODEL_VOCABULARY, hidden_size=32, n_layer=2, n_head=4, **tokens),
        "mamba": lambda: hf.MambaConfig(
            vocab_size=MODEL_VOCABULARY, hidden_size=32, state_size=8, num_hidden_layers=2, pad_token_id=258, **tokens
        ),
    }


def build_base(directory: Path, family: str = "llama", seed: int = 0) -> Path:
    """Saves a tiny random model of this family, in float32, with a tokenizer and a chat template."""
    import torch
    from transformers import AutoModelForCausalLM

    torch_on_one_thread()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(_configs()[family]())
        # Larger weights than a fresh model's: random logits must not tie, and adapters must show.
        with torch.no_grad():
            for parameter in model.parameters():
                if parameter.dim() > 1:
                    parameter.normal_(0.0, 0.3)
        model.save_pretrained(directory)
    save_tokenizer(directory)
    return directory


def build_adapter(base: Path, directory: Path, seed: int = 1, rows: int | None = None, **lora: Any) -> Path:
    """Saves a random LoRA adapter for `base` with peft itself; `lora` goes to LoraConfig.

    Without `target_modules` every linear module is a target. With `rows`, the vocabulary had another size in training.
    """
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    options: dict[str, Any] = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        torch.manual_seed(seed)
        if rows is not None:
            model.resize_token_embeddings(rows)
        get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **(options | lora))).save_pretrained(directory)
    return directory


@pytest.fixture(scope="session")
def make_base(tmp_path_factory: pytest.TempPathFactory) -> BaseFactory:
    """`make_base(family)`: the directory of a tiny random model; one a family and run."""
    built: dict[str, Path] = {}

    def make(family: str = "llama") -> Path:
        if family not in built:
            built[family] = build_base(tmp_path_factory.mktemp(family) / "base", family)
        return built[family]

    return make


@pytest.fixture(scope="session")
def tiny_base(make_base: BaseFactory) -> Path:
    """A tiny random Llama in float32 with tokenizer and chat template. Read only."""
    return make_base("llama")


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> AdapterFactory:
    """`make_adapter(name, *, base=tiny_base, seed=…, **lora_config)`: a fresh directory, saved by peft."""

    def make(name: str, *, base: Path | None = None, seed: int | None = None, **lora: Any) -> Path:
        directory = tmp_path_factory.mktemp("adapters") / name
        return build_adapter(base or tiny_base, directory, sum(name.encode()) if seed is None else seed, **lora)

    return make


class InProcessEngine:
    """An Engine whose loader does each job at once, driven by hand."""

    def __init__(self, base: Path, **start: Any) -> None:
        from graft_runtime.engine.engine import Engine
        from graft_runtime.engine.loader import Loader
        from graft_runtime.messages import Start

        torch_on_one_thread()
        loader = Loader()
        self.engine = Engine(lambda job: self.engine.handle(loader.do(job)))
        options = {"max_sequences": 64, "max_sequence_length": 4096, "max_mounted_adapters": 8, "max_rank": 16}
        self.handle(Start(str(base), "tiny", start.pop("dtype", "float32"), **(options | start)))
        self.started = self.step()

    def handle(self, command: Any) -> None:
        self.engine.handle(command)

    def step(self) -> list[Any]:
        return self.engine.step()

    def mount(self, digest: str, directory: Path) -> Any:
        """Mounts under this digest; the event that answers."""
        from graft_runtime.messages import Mount

        self.handle(Mount(digest, str(directory), digest))
        (event,) = self.step()
        return event

    def collect(self, events: list[Any]) -> dict[str, list[int]]:
        """Steps until nothing is left to do; the tokens of each request. No request may fail."""
        from graft_runtime.messages import Generated

        answers: dict[str, list[int]] = {}
        while events or self.engine.busy:
            for event in events:
                if isinstance(event, Generated):
                    assert event.fault is None, event.fault
                    answers.setdefault(event.request, []).extend(event.tokens)
            events = self.step()
        return answers

    def answers(self, submits: list[Any]) -> dict[str, list[int]]:
        """Submits all at once; the tokens of each by name."""
        for submit in submits:
            self.handle(submit)
        return self.collect([])


@pytest.fixture
def in_process() -> Callable[..., InProcessEngine]:
    """`in_process(base, **start)`: an engine with this base loaded, without a process of its own."""
    return InProcessEngine
