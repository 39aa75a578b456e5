"""Which module reads which PEFT method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graft_runtime.adapters.methods.adalora import AdaLora
from graft_runtime.adapters.methods.beft import Beft
from graft_runtime.adapters.methods.delora import DeLora
from graft_runtime.adapters.methods.gralora import GraLora
from graft_runtime.adapters.methods.hra import Hra
from graft_runtime.adapters.methods.ia3 import Ia3
from graft_runtime.adapters.methods.ln_tuning import LnTuning
from graft_runtime.adapters.methods.loha import LoHa
from graft_runtime.adapters.methods.lokr import LoKr
from graft_runtime.adapters.methods.lora import Lora
from graft_runtime.adapters.methods.miss import Miss
from graft_runtime.adapters.methods.prompts import PrefixTuning, PromptTuning, PTuning
from graft_runtime.adapters.methods.recipe import Recipe
from graft_runtime.adapters.methods.trainable_tokens import TrainableTokens
from graft_runtime.adapters.methods.unilora import UniLora
from graft_runtime.adapters.methods.unserved import UNSERVED
from graft_runtime.adapters.methods.vblora import VbLora
from graft_runtime.adapters.methods.vera import Vera
from graft_runtime.errors import ErrorCode, GraftError

METHODS: Mapping[str, Callable[[Mapping[str, Any], str], Recipe]] = {
    recipe.method: recipe
    for recipe in (
        *(Lora, AdaLora, Ia3, LoHa, LoKr, Vera, LnTuning, TrainableTokens),
        *(PromptTuning, PTuning, PrefixTuning),
        *(Miss, Hra, DeLora, GraLora, Beft, VbLora, UniLora),
    )
}
"""By `peft_type`. Each takes the config and how errors call the adapter."""


def read_recipe(config: Mapping[str, Any], name: str) -> Recipe:
    """Return the recipe of an adapter's config.

    Raises:
        GraftError: UnsupportedMethod, InvalidConfig.
    """
    method = config.get("peft_type")
    if not isinstance(method, str) or not method:
        raise GraftError(
            ErrorCode.INVALID_CONFIG,
            f"adapter_config.json of adapter `{name}` has peft_type {method!r}, expected the name of a PEFT method",
            hint="save the adapter with peft's save_pretrained()",
        )
    if method not in METHODS:
        known = "a method of peft" if method in UNSERVED else "no method of peft that Graft knows"
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` is of method {method[:40]!r}, {known}; Graft serves {', '.join(METHODS)}",
            hint=UNSERVED.get(method, "train LoRA, or merge it with peft and serve the result as a base model"),
        )
    return METHODS[method](config, name)
