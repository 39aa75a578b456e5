"""What PEFT's LoRA can be told to train, against PEFT in float32: alone, and mixed with the base in one batch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import CompiledAdapter
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.engine.requests import first_position
from graft_runtime.engine.route import choose_runner
from graft_runtime.model.load import load_base
from graft_runtime.model.modules import BaseModules
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.padded import PaddedRunner

PROMPTS = ([3, 1, 2, 5, 9, 11, 4], [7, 8, 300, 6], [1, 2, 5, 9, 3, 3, 2, 5, 10], [40, 41])


class Mixed:
    """A base and adapters on the runner that serves it."""

    def __init__(self, base: Path, adapters: Mapping[str, Path]) -> None:
        self.base = load_base(base, name="tiny", dtype="float32", max_sequence_length=256)
        self.runner = choose_runner(self.base, max_rank=64)
        self.adapters = {name: self.compiled(name, directory) for name, directory in adapters.items()}
        for name, adapter in self.adapters.items():
            with torch.inference_mode():
                self.runner.trial(adapter, name)

    def compiled(self, name: str, directory: Path) -> CompiledAdapter:
        files = read_adapter_files(directory, name=name, max_rank=64)
        model, base = self.base.model, self.base
        return compile_adapter(files, base.layout, BaseModules(model), dtype=base.dtype, device=base.device)

    @torch.inference_mode()
    def logits(self, prompts: Sequence[Sequence[int]], names: Sequence[str | None]) -> list[torch.Tensor]:
        """After each prompt, [vocabulary]."""
        rows = [self._row(prompt, name) for prompt, name in zip(prompts, names, strict=True)]
        for row in rows:
            assert self.runner.bank.hold(row)
        if isinstance(self.runner, DecoderRunner):
            made = self.runner.logits_of([list(prompt) for prompt in prompts], rows)
        else:
            assert isinstance(self.runner, PaddedRunner)
            made = self.runner.run(self.runner.start(prompts, [[] for _ in prompts], rows))
        for row in rows:
            self.runner.bank.release(row)
        return list(made.cpu())

    def _row(self, prompt: Sequence[int], name: str | None) -> tuple[RowAdapter, ...]:
        if name is None:
            return ()
        adapter = self.adapters[name]
        return (RowAdapter(adapter, 1.0, first_position(prompt, adapter.invocation)),)


@torch.inference_mode()
def peft_logits(base: Path, adapter: Path | None, prompts: Sequence[Sequence[int]]) -> list[torch.Tensor]:
    """PEFT's, each prompt alone, on a base of its own: PEFT writes into it."""
    from peft import PeftModel
    from safetensors.torch import load_file
    from transformers import AutoModelForCausalLM

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = AutoModelForCausalLM.from_pretrained(base)
        if adapter is not None:
            ends = tuple(f"embed_tokens.{inner}weight" for inner in ("", "base_layer.", "token_adapter.base_layer."))
            saved = load_file(adapter / "adapter_model.safetensors")
            rows = next((tensor.shape[0] for key, tensor in saved.items() if key.endswith(ends)), None)
            if rows and rows != model.get_input_embeddings().weight.shape[0]:
                model.resize_token_embeddings(rows)
            model = PeftModel.from_pretrained(model, adapter)
        model.eval()
        return [model(input_ids=torch.tensor([list(prompt)])).logits[0, -1] for prompt in prompts]


LORA: dict[str, dict[str, Any]] = {
    "plain": {},
    "dora": {"use_dora": True},
    "lora bias": {"lora_bias": True},
    "pissa": {"init_lora_weights": "pissa"},
    "olora": {"init_lora_weights": "OLoRA"},
    "head": {"modules_to_save": ["lm_head"], "target_modules": ["q_proj"]},
    "embedding whole": {"modules_to_save": ["embed_tokens"], "target_modules": ["q_proj"]},
    "layer whole": {"modules_to_save": ["layers.1"], "target_modules": ["k_proj"]},
    "norms": {"modules_to_save": ["norm", "input_layernorm"], "target_modules": ["v_proj"]},
    "tokens": {"trainable_token_indices": [5, 300, 2], "target_modules": ["q_proj"]},
    "tokens alone": {"trainable_token_indices": {"embed_tokens": [9]}, "target_modules": ["v_proj"]},
    "embedding": {"target_modules": ["embed_tokens", "q_proj"]},
    "embedding and head": {"target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "activated": {"alora_invocation_tokens": [2, 5], "target_modules": ["q_proj", "v_proj", "down_proj"]},
}
FAMILIES: dict[str, dict[str, dict[str, Any]]] = {
    "llama": LORA,
    "tied": {name: LORA[name] for name in ("plain", "tokens", "embedding", "embedding whole", "head")}
    | {
        "tokens apart": {
            "trainable_token_indices": {"embed_tokens": [5, 2], "lm_head": [7, 9]},
            "target_modules": ["q_proj"],
        },
        "tied too": {"target_modules": ["embed_tokens", "q_proj"], "ensure_weight_tying": True},
        "whole and tied": LORA["embedding whole"] | {"ensure_weight_tying": True},
    },
    "gemma3": {name: LORA[name] for name in ("dora", "tokens", "embedding", "norms")},
    "qwen2": {
        "biases": {"bias": "all"},
        "own biases": {"bias": "lora_only"},
        "biased dora": LORA["dora"] | {"bias": "all"},
    },
    "qwen3": {name: LORA[name] for name in ("plain", "dora", "norms", "lora bias")},
    "mistral": {name: LORA[name] for name in ("plain", "olora", "tokens")},
    "phi3": {
        "plain": {},
        "patterned": {"rank_pattern": {"qkv_proj": 2}, "alpha_pattern": {"gate_up_proj": 3}, "use_rslora": True},
        "dora": {"use_dora": True},
    },
    "gpt_neox": {
        "plain": {},
        "biases": {"bias": "all"},
        "head": {"modules_to_save": ["lm_head"], "target_modules": ["query_key_value"]},
    },
    "gpt2": {
        "plain": {},
        "dora": {"use_dora": True},
        "biases": {"bias": "all"},
        "pissa": {"init_lora_weights": "pissa"},
        "saved": {"modules_to_save": ["c_fc", "ln_f"], "target_modules": ["c_attn"]},
    },
    "opt": {"biases": {"bias": "all"}, "own biases": {"bias": "lora_only"}, "dora": {"use_dora": True}},
    "bloom": {"activated": {"alora_invocation_tokens": [2, 5]}, "dora": {"use_dora": True}, "biases": {"bias": "all"}},
}


def same(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-3)


def shaken(directory: Path, *, with_factors: bool) -> None:
    """What PEFT saved besides A and B is what the base has: moves it, as a training would."""
    from safetensors.torch import load_file, save_file

    path = directory / "adapter_model.safetensors"

    def noise(tensor: torch.Tensor) -> torch.Tensor:  # the same for tensors that are tied
        return 0.2 * torch.randn(tensor.shape, generator=torch.Generator().manual_seed(7))

    moved = {
        name: tensor + noise(tensor) if "base_layer" not in name and (with_factors or "lora_" not in name) else tensor
        for name, tensor in load_file(path).items()
    }
    save_file(moved, path)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_option_alone_and_mixed(
    family: str, make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    base = make_base(family)
    adapters = {}
    for name, options in FAMILIES[family].items():
        adapters[name] = make_adapter(name, base=base, **options)
        shaken(adapters[name], with_factors="init_lora_weights" in options)
    expected = {name: peft_logits(base, directory, PROMPTS) for name, directory in adapters.items()}
    plain = peft_logits(base, None, PROMPTS)
    mixed = Mixed(base, adapters)
    for name in (*adapters, *adapters):  # the second time after the others came and went
        for alone, theirs in zip(mixed.logits(PROMPTS, [name] * len(PROMPTS)), expected[name], strict=True):
            torch.testing.assert_close(alone, theirs, atol=1e-4, rtol=1e-4)
        if name != "activated":
            assert not all(map(same, expected[name], plain)), name
    everybody = [None, *adapters, None]
    prompts = [PROMPTS[index % len(PROMPTS)] for index in range(len(everybody))]
    forward = list(range(len(everybody)))
    for rows in (forward, forward[::-1]):
        made = mixed.logits([prompts[row] for row in rows], [everybody[row] for row in rows])
        for row, logits in zip(rows, made, strict=True):
            whose = everybody[row]
            theirs = (expected[whose] if whose else plain)[row % len(PROMPTS)]
            torch.testing.assert_close(logits, theirs, atol=1e-4, rtol=1e-4)


def test_a_vocabulary_that_has_grown(tiny_base: Path, make_adapter: Callable[..., Path]) -> None:
    grown = make_adapter("grown", rows=330, target_modules=["q_proj"])
    targeted = make_adapter("targeted", rows=325, target_modules=["embed_tokens", "lm_head", "q_proj"])
    mixed = Mixed(tiny_base, {"grown": grown, "targeted": targeted})
    assert mixed.adapters["grown"].facts.vocabulary_size == 330
    prompts = [[1, 329, 320, 5], [1, 2, 3], [324, 322, 7]]
    (theirs,), (base,), (other,) = (
        peft_logits(tiny_base, directory, [prompt])
        for directory, prompt in zip([grown, None, targeted], prompts, strict=True)
    )
    made = mixed.logits(prompts, ["grown", None, "targeted"])
    torch.testing.assert_close(made[0], theirs, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made[1][:320], base, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made[2][:325], other, atol=1e-4, rtol=1e-4)
    assert (made[1][320:] == float("-inf")).all()
    assert (made[2][325:] == float("-inf")).all()


@pytest.mark.parametrize("family", ["llama", "tied"])
def test_a_vocabulary_that_has_grown_is_saved_whole(
    family: str, make_base: Callable[..., Path], make_adapter: Callable[..., Path]
) -> None:
    """PEFT writes such embeddings under their names, and once more with its wrappers in them."""
    base = make_base(family)
    adapters = {
        name: make_adapter(name, base=base, rows=rows, target_modules=["q_proj"], modules_to_save=saved)
        for name, rows, saved in (("both", 330, ["embed_tokens", "lm_head"]), ("one", 325, ["embed_tokens"]))
    }
    prompts = {"both": [1, 329, 320, 5], "one": [1, 324, 3]}
    for directory in adapters.values():
        shaken(directory, with_factors=False)
    mixed = Mixed(base, adapters)
    for (name, prompt), logits in zip(prompts.items(), mixed.logits([*prompts.values()], [*prompts]), strict=True):
        (theirs,) = peft_logits(base, adapters[name], [prompt])
        torch.testing.assert_close(logits[: len(theirs)], theirs, atol=1e-4, rtol=1e-4)
