"""Which module reads which PEFT method."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from graft_runtime.adapters.methods.lora import Lora
from graft_runtime.adapters.methods.recipe import Recipe
from graft_runtime.errors import ErrorCode, GraftError

METHODS: Mapping[str, Callable[[Mapping[str, Any], str], Recipe]] = {"LORA": Lora}
"""By `peft_type`. Each takes the config and how errors call the adapter."""


def read_recipe(config: Mapping[str, Any], name: str) -> Recipe:
    """The recipe of an adapter's config.

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
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` is of method {method[:40]!r}; Graft serves {', '.join(METHODS)}",
            hint="train LoRA, convert it with peft's convert_to_lora(), or merge it with merge_and_unload() and serve "
            "the result as a base model",
        )
    return METHODS[method](config, name)
