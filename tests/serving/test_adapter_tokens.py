"""Trained tokens that the base does not have: what trainable tokens are for."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.methods import save_method
from tests.support.mixed import Mixed, peft_logits


@pytest.mark.parametrize("family", ["llama", "tied"])
@pytest.mark.parametrize("config", ["TrainableTokensConfig", "LoraConfig"])
def test_trained_tokens_that_the_base_does_not_have(
    family: str, config: str, make_base: Callable[..., Path], tmp_path: Path
) -> None:
    own: dict[str, Any] = {"token_indices": [325, 5]}
    if config == "LoraConfig":
        own = {"trainable_token_indices": [325, 5], "target_modules": ["q_proj"], "init_lora_weights": False}
    base = make_base(family)
    adapter = save_method(base, tmp_path / "grown", config, own, seed=3, rows=330)
    prompts = [[1, 325, 5, 9], [1, 327, 3], [4, 5, 6]]
    mixed = Mixed(base, {"grown": adapter})
    made = mixed.logits(prompts, ["grown", "grown", None])
    known = 320 if (family, config) == ("llama", "TrainableTokensConfig") else 330  # PEFT saves no head there
    for logits, theirs in zip(made[:2], peft_logits(base, adapter, prompts[:2]), strict=True):
        torch.testing.assert_close(logits[:known], theirs[:known], atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(made[2][:320], peft_logits(base, None, prompts[2:])[0], atol=1e-4, rtol=1e-4)
