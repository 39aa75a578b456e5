"""What PEFT's LoRA can be told to train, against PEFT in float32: alone, and mixed with the base in one batch."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.mixed import PROMPTS, Mixed, peft_logits, same
from tests.support.plain_lora import check_plain

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
    "mistral": {name: LORA[name] for name in ("plain", "olora", "tokens")}
    | {
        "anchored": {
            "rank_pattern": {"^model.layers.0.self_attn.q_proj": 2, "layers.1.self_attn.v_proj$": 3},
            "alpha_pattern": {r"^model\.layers\.1\..*": 3},
        }
    },
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


@dataclass(frozen=True)
class Built:
    """A base, adapters on it, and what PEFT answers with each."""

    base: Path
    adapters: dict[str, Path]
    expected: dict[str, list[torch.Tensor]]


@pytest.fixture(scope="module")
def built(make_base: Callable[..., Path], make_adapter: Callable[..., Path]) -> Callable[[str], Built]:
    """`built(family)`, once each."""
    made: dict[str, Built] = {}

    def of(family: str) -> Built:
        if family not in made:
            base, adapters = make_base(family), {}
            for name, options in FAMILIES[family].items():
                adapters[name] = make_adapter(name, base=base, **options)
                shaken(adapters[name], with_factors="init_lora_weights" in options)
            expected = {name: peft_logits(base, directory, PROMPTS) for name, directory in adapters.items()}
            made[family] = Built(base, adapters, expected)
        return made[family]

    return of


WHY = {
    "use_dora": "it multiplies features",
    "lora_bias": "it adds a bias",
    "bias": "it has trained biases",
    "modules_to_save": "it keeps modules whole",
    "alora_invocation_tokens": "it takes part in some tokens",
}
"""Why an adapter with such an option is no plain LoRA."""


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_option_as_plain_lora(family: str, built: Callable[[str], Built], tmp_path: Path, capsys: Any) -> None:
    those = built(family)
    refused = {
        name: next(why for option, why in WHY.items() if option in options)
        for name, options in FAMILIES[family].items()
        if options.keys() & WHY.keys()
    }
    check_plain(those.base, those.adapters, those.expected, directory=tmp_path, refused=refused, capsys=capsys)


@pytest.mark.parametrize("family", list(FAMILIES))
def test_every_option_alone_and_mixed(family: str, built: Callable[[str], Built]) -> None:
    base, adapters, expected = (those := built(family)).base, those.adapters, those.expected
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
