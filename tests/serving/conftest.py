"""Tiny random models and adapters, made on the spot: seconds, no download. `peft` saves them and is the oracle."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.support.oracle import Oracle

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


@pytest.fixture
def unfinished(tmp_path: Path) -> Callable[[], list[Path]]:
    """List what copies into the caches of a test are filling, or have left behind."""
    return lambda: sorted(tmp_path.glob("*/partial/*"))


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
    t5: dict[str, Any] = {
        "vocab_size": MODEL_VOCABULARY,
        "d_model": 32,
        "d_kv": 8,
        "d_ff": 48,
        "num_layers": 2,
        "num_heads": 4,
        "relative_attention_num_buckets": 8,
        "relative_attention_max_distance": 16,
        "decoder_start_token_id": 258,
        "eos_token_id": 257,
        "pad_token_id": 258,
        "tie_word_embeddings": False,
    }
    bart: dict[str, Any] = {
        "vocab_size": MODEL_VOCABULARY,
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
        "pad_token_id": 258,
        "tie_word_embeddings": False,
        "bos_token_id": 256,
        "eos_token_id": 257,
    }
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
        "mixtral": lambda: hf.MixtralConfig(**llama_like, num_local_experts=4, num_experts_per_tok=2),
        "qwen3_moe": lambda: hf.Qwen3MoeConfig(
            **llama_like,
            head_dim=8,
            num_experts=4,
            num_experts_per_tok=2,
            moe_intermediate_size=24,
            norm_topk_prob=True,
        ),
        "phi3": lambda: hf.Phi3Config(**llama_like),
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
    """The class of Transformers that loads a model for this task of PEFT's."""
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
    """The base as Transformers loads it for a task; with another number of labels its head is fresh."""
    head = {} if labels is None else {"num_labels": labels, "ignore_mismatched_sizes": True}
    return auto_class(task).from_pretrained(base, **head).eval()


def build_base(directory: Path, family: str = "llama", seed: int = 0, task: str = "CAUSAL_LM") -> Path:
    """Saves a tiny random model of this family, in float32, with a tokenizer and a chat template."""
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


def build_adapter(
    base: Path,
    directory: Path,
    seed: int = 1,
    *,
    rows: int | None = None,
    task: str = "CAUSAL_LM",
    labels: int | None = None,
    **lora: Any,
) -> Path:
    """Saves a random LoRA adapter for `base` with peft itself; `lora` goes to LoraConfig.

    Without `target_modules` every linear module is a target. With `rows`, the vocabulary had another size in training,
    with `labels` the head of a classifier.
    """
    import torch
    from peft import LoraConfig, get_peft_model

    options: dict[str, Any] = {
        "task_type": task,
        "r": 4,
        "lora_alpha": 8,
        "target_modules": "all-linear",
        "init_lora_weights": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(seed)
        model = load_for(task, base, labels)
        if rows is not None:
            model.resize_token_embeddings(rows)
        get_peft_model(model, LoraConfig(**(options | lora))).save_pretrained(directory)
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


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory, tiny_base: Path) -> AdapterFactory:
    """`make_adapter(name, *, base=tiny_base, seed=…, **lora_config)`: a fresh directory, saved by peft."""

    def make(name: str, *, base: Path | None = None, seed: int | None = None, **lora: Any) -> Path:
        directory = tmp_path_factory.mktemp("adapters") / name
        return build_adapter(base or tiny_base, directory, sum(name.encode()) if seed is None else seed, **lora)

    return make


@pytest.fixture(scope="session")
def drift() -> Callable[[Path], Path]:
    """`drift(adapter)`: its modules get the names that they have below `AutoModel`, in place."""

    def drifted(adapter: Path) -> Path:
        from safetensors.torch import load_file, save_file

        weights = load_file(adapter / "adapter_model.safetensors")
        weights = {name.replace("model.model.layers", "model.layers"): tensor for name, tensor in weights.items()}
        save_file(weights, adapter / "adapter_model.safetensors")
        return adapter

    return drifted


class InProcessEngine:
    """An Engine whose loader does each job at once, driven by hand.

    Args:
        base: directory of the checkpoint.
        budgets: of the engine; None: those that it has by default.
        start: fields of EngineConfig that are to be otherwise, `dtype`, `merge`.
    """

    def __init__(self, base: Path, budgets: Any = None, **start: Any) -> None:
        from graft_runtime.contract.config import EngineConfig
        from graft_runtime.engine.budgets import Budgets
        from graft_runtime.engine.engine import Engine
        from graft_runtime.engine.loader import Loader
        from graft_runtime.messages import Start

        torch_on_one_thread()
        self.loader = Loader()
        self.load_later: list[Any] | None = None
        """Where jobs of the loader are put instead of being done, once it is a list."""
        self.engine = Engine(self._load, budgets or Budgets())
        options = {"max_sequences": 64, "max_sequence_length": 4096, "max_mounted_adapters": 8, "max_rank": 16}
        dtype, merge = start.pop("dtype", "float32"), start.pop("merge", ())
        self.handle(Start(str(base), "tiny", dtype, EngineConfig(**(options | start)), merge))
        self.started = self.step()

    def _load(self, job: Any) -> None:
        if self.load_later is None:
            self.engine.handle(self.loader.do(job))
        else:
            self.load_later.append(job)

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
        """Asks all at once; the tokens of each by name."""
        for submit in submits:
            self.handle(submit)
        return self.collect([])


@pytest.fixture
def in_process() -> Callable[..., InProcessEngine]:
    """`in_process(base, budgets, **start)`: an engine with this base loaded, without a process of its own."""
    return InProcessEngine


@pytest.fixture(scope="session")
def make_engine() -> Callable[..., InProcessEngine]:
    """As `in_process`, for fixtures that outlive a test."""
    return InProcessEngine


@pytest.fixture
def make_oracle() -> Callable[..., Oracle]:
    """`make_oracle(base)`: what an answer must be, by Transformers and PEFT."""
    from tests.support.oracle import Oracle

    return Oracle
