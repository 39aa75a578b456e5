"""Train the demo's four LoRA adapters from `data/*.jsonl`: about ten minutes on one core, always the same result.

    .venv/bin/python examples/train_adapters.py [NAME ...]

Each answers a question in a manner of its own, so that one sees at a glance which adapter has answered. Between them
they cover plain LoRA, rsLoRA, and rank and alpha patterns. `peft` is needed here only: nothing that serves imports it.
"""

from __future__ import annotations

import json
import random
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import torch
from graft_local.cache import cache_directory
from graft_local.gemma import ensure_checkpoint
from graft_local.progress import Progress
from peft import LoraConfig, PeftModel, get_peft_model, get_peft_model_state_dict
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

HERE = Path(__file__).parent
BASE = "google/gemma-3-270m"
SEED = 20
EPOCHS = 7
BATCH = 6
LEARNING_RATE = 2e-3
HELD_OUT = ("What is the sea?", "Why is the sky blue?", "What is a friend?")

ADAPTERS: dict[str, dict[str, Any]] = {
    "pirate": {"r": 8, "lora_alpha": 16, "target_modules": ["q_proj", "v_proj"]},
    "haiku": {"r": 6, "lora_alpha": 6, "use_rslora": True, "target_modules": ["q_proj", "k_proj", "v_proj", "o_proj"]},
    "json": {
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "o_proj"],
        "rank_pattern": {"o_proj": 8},
        "alpha_pattern": {"o_proj": 32},
    },
    "emoji": {"r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "v_proj", "down_proj"]},
}


def prompt_of(question: str) -> str:
    """The text that the adapters are trained on, and that their chat template renders for one user message."""
    return f"Question: {question}\nAnswer:"


def examples_of(name: str, tokenizer: Any) -> list[tuple[list[int], int]]:
    """Every example as (token ids, number of those that belong to the prompt)."""
    examples = []
    for line in (HERE / "data" / f"{name}.jsonl").read_text(encoding="utf-8").splitlines():
        example = json.loads(line)
        prompt = tokenizer(prompt_of(example["question"])).input_ids
        answer = tokenizer(" " + example["answer"], add_special_tokens=False).input_ids
        examples.append(([*prompt, *answer, tokenizer.eos_token_id], len(prompt)))
    return examples


def loss_of(model: PeftModel, batch: list[tuple[list[int], int]]) -> torch.Tensor:
    """Cross entropy over the answers' tokens. Only these go through the head, which is most of this model's work."""
    length = max(len(ids) for ids, _ in batch)
    ids = torch.tensor([row + [0] * (length - len(row)) for row, _ in batch])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row, _ in batch])
    causal = model.get_base_model()
    hidden = causal.model(input_ids=ids, attention_mask=mask).last_hidden_state
    rows = [(row, at) for row, (tokens, prompt) in enumerate(batch) for at in range(prompt - 1, len(tokens) - 1)]
    row, at = (torch.tensor(indices) for indices in zip(*rows, strict=True))
    return torch.nn.functional.cross_entropy(causal.lm_head(hidden[row, at]), ids[row, at + 1])


def train(name: str, checkpoint: Path) -> None:
    """Train one adapter and write it to `adapters/NAME`, weights in bf16."""
    torch.set_num_threads(1)  # sums in one order on every machine
    torch.manual_seed(SEED)
    shuffle = random.Random(SEED)
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    base = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    model = get_peft_model(base, LoraConfig(task_type="CAUSAL_LM", **ADAPTERS[name]))
    examples = examples_of(name, tokenizer)
    steps = EPOCHS * -(-len(examples) // BATCH)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (step + 1) / 6) * (1 - step / steps))
    started = time.monotonic()
    for epoch in range(EPOCHS):
        shuffle.shuffle(examples)
        losses = []
        for first in range(0, len(examples), BATCH):
            loss = loss_of(model, examples[first : first + BATCH])
            optimizer.zero_grad()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            losses.append(loss.item())
        print(f"{name}: epoch {epoch + 1}, loss {sum(losses) / len(losses):.3f}, {time.monotonic() - started:.0f} s")
    write(model, HERE / "adapters" / name)


def write(model: PeftModel, directory: Path) -> None:
    """Save as PEFT does, but in bf16, with a stable order in the config, and with the chat template."""
    directory.mkdir(parents=True, exist_ok=True)
    weights = {key: value.to(torch.bfloat16).contiguous() for key, value in get_peft_model_state_dict(model).items()}
    save_file(weights, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    config = model.peft_config["default"].to_dict()
    config |= {"base_model_name_or_path": BASE, "inference_mode": True}
    config["target_modules"] = sorted(config["target_modules"])
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2, sort_keys=True, default=str) + "\n")
    shutil.copy(HERE / "chat_template.jinja", directory / "chat_template.jinja")


def show(checkpoint: Path, names: list[str]) -> None:
    """Print what the base and the adapters answer to questions that none of them was trained on."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint)
    model = AutoModelForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    for name in ("", *names):
        served = PeftModel.from_pretrained(model, HERE / "adapters" / name).eval() if name else model.eval()
        for question in HELD_OUT:
            inputs = tokenizer(prompt_of(question), return_tensors="pt")
            output = served.generate(**inputs, max_new_tokens=48, do_sample=False)[0]
            answer = tokenizer.decode(output[inputs.input_ids.shape[1] :])
            print(f"{name or 'base':8} {question:22} {answer!r}")
        if name:
            model = served.unload()


def main() -> None:
    """Train the adapters named as arguments, or all."""
    names = sys.argv[1:] or list(ADAPTERS)
    checkpoint = ensure_checkpoint(cache_directory(), Progress())
    for name in names:
        train(name, checkpoint)
    show(checkpoint, names)


if __name__ == "__main__":
    main()
