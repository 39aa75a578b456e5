"""Which module reads which PEFT method, and what Graft does with each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
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


@dataclass(frozen=True)
class Support:
    """What can be done with an adapter of a method, or with one that uses an option of LoRA.

    Attributes:
        served: beside others on one base.
        mixed: with other adapters and the base in one batch.
        merged: into the base's weights.
        scaled: with a weight other than 1.
        composed: with others on one request.
    """

    served: bool = True
    mixed: bool = True
    merged: bool = True
    scaled: bool = True
    composed: bool = True


_REPLACES = Support(scaled=False, composed=False)
_NOT = Support(*[False] * 5)
SUPPORT: Mapping[str, Support] = {
    **dict.fromkeys(METHODS, Support()),
    **dict.fromkeys(("IA3", "LN_TUNING", "TRAINABLE_TOKENS"), _REPLACES),
    **dict.fromkeys(
        ("PROMPT_TUNING", "P_TUNING", "PREFIX_TUNING"), Support(merged=False, scaled=False, composed=False)
    ),
    **dict.fromkeys(sorted(UNSERVED), _NOT),
}
"""By `peft_type`."""
LORA_OPTIONS: Mapping[str, Support] = {
    "`use_rslora`, `rank_pattern`, `alpha_pattern`, `exclude_modules`, `layers_to_transform`": Support(),
    "`use_dora` (DoRA)": _REPLACES,
    "`init_lora_weights`: `pissa`, `olora`": Support(),
    "`lora_bias`": Support(),
    "`bias`: `all`, `lora_only`": Support(composed=False),
    "`target_modules` with embeddings or heads": Support(),
    "`modules_to_save`": Support(composed=False),
    "`trainable_token_indices`": Support(composed=False),
    "a vocabulary of another size than the base's": Support(merged=False, composed=False),
    "`alora_invocation_tokens` (aLoRA)": Support(merged=False),
    "`target_parameters` of experts, and files with an adapter for each expert": Support(merged=False),
    "`init_lora_weights`: `pissa_niter_*`, `corda`, `loftq`, `lora_ga`; `use_qalora`, `use_bdlora`, `arrow_config`, "
    "`kasa_config`, `velora_config`, `monteclora_config`, `layer_replication`, `megatron_config`": _NOT,
}
"""By the option, for people."""


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
