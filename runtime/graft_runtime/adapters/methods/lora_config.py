"""The `adapter_config.json` of a LoRA adapter: what matters at inference, and what is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft_runtime.adapters.fields import NEUTRAL, FieldReader, Pattern, Targets, first_match, refuse_options
from graft_runtime.adapters.methods.recipe import options_not_served
from graft_runtime.adapters.parts.low_rank import OLORA, STARTS

HARMLESS = frozenset(
    {"lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config", "lora_ga_config"}
    | {"qalora_group_size", "runtime_config", "merge_weights"}
    | {"lora_dtype", "lorap_lr_ratio", "lorap_emb_lr", "swift_type"}  # ms-swift's, of the training
)
"""They change nothing in the forward pass of a saved adapter."""
_READ = frozenset(
    {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"}
    | {"layers_to_transform", "layers_pattern", "bias", "init_lora_weights", "use_dora", "lora_bias"}
    | {
        "modules_to_save",
        "trainable_token_indices",
        "ensure_weight_tying",
        "alora_invocation_tokens",
        "target_parameters",
    }
)
REFUSED = {
    "layer_replication": "replicated layers",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron layers",
}
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base as it is."""
MAX_INVOCATION = 256
"""Tokens that each prompt is searched for."""
BIASES = ("none", "all", "lora_only")


@dataclass(frozen=True)
class LoraConfig:
    """What the forward pass of one adapter depends on."""

    rank: int
    alpha: float
    rank_stabilized: bool
    rank_patterns: tuple[Pattern, ...]
    alpha_patterns: tuple[Pattern, ...]
    targets: Targets
    start: str | None
    """How A and B were taken out of the base's weights when the training began: `pissa`, `olora`."""
    dora: bool
    biased: bool
    """B has a bias (`lora_bias`)."""
    bias: str
    """Which biases of the base were trained along: `none`, `all`, `lora_only`."""
    saved: tuple[str, ...]
    """modules_to_save."""
    parameters: tuple[str, ...]
    """target_parameters: the ends of the paths of stacked parameters."""
    tokens: Mapping[str, tuple[int, ...]]
    """The rows of embeddings that were trained, by the end of the embedding's path; `` for the input embedding."""
    tied: bool
    """A head that is tied to the embedding has the embedding's adapter (`ensure_weight_tying`)."""
    invocation: tuple[int, ...]
    """Of an activated LoRA: the tokens from which on it takes part."""
    base_model: str | None
    """What the adapter says that it was trained for; only told, never opened."""

    @property
    def shared_tokens(self) -> bool:
        """Tell whether the trained rows of an embedding are also those of the head that is tied to the embedding.

        PEFT keeps them apart where the config names other tokens for each (other.py, set_additional_trainable_modules).
        """
        return self.tied or len(set(self.tokens.values())) < 2

    def names_parameter(self, path: str) -> bool:
        """Tell whether target_parameters means this parameter: its whole path, or the end of that path after a dot."""
        return any(path == end or path.endswith("." + end) for end in self.parameters)

    def rank_of(self, path: str) -> int:
        """Return `r`, or what the first matching key of rank_pattern says."""
        return int(first_match(self.rank_patterns, path, self.rank))

    def alpha_of(self, path: str) -> float:
        """Return `lora_alpha`, or what the first matching key of alpha_pattern says."""
        return first_match(self.alpha_patterns, path, self.alpha)

    def scale_of(self, path: str, rank: int) -> float:
        """Return alpha/r, or alpha/√r for rsLoRA (https://arxiv.org/abs/2312.03732)."""
        return self.alpha_of(path) / (math.sqrt(rank) if self.rank_stabilized else rank)


def read_lora_config(config: Mapping[str, Any], name: str) -> LoraConfig:
    """Read a config and check every field.

    Raises:
        GraftError: UnsupportedMethod with every option that Graft does not serve, else InvalidConfig with every value
            that has no meaning.
    """
    if refused := _refused(config):
        raise options_not_served(name, "LoRA", refused)
    reader = FieldReader(config)
    start = _start(config)
    read = LoraConfig(
        rank=reader.rank("r", config.get("r", 8)),
        alpha=reader.number("lora_alpha", config.get("lora_alpha", 8)),
        rank_stabilized=reader.flag("use_rslora"),
        rank_patterns=reader.rank_patterns(),
        alpha_patterns=reader.alpha_patterns(),
        targets=reader.targets(),
        start=start if start in STARTS else None,
        dora=reader.flag("use_dora"),
        biased=reader.flag("lora_bias"),
        bias=reader.choice("bias", BIASES),
        saved=reader.names("modules_to_save"),
        parameters=reader.names("target_parameters"),
        tokens=_tokens(reader),
        tied=reader.flag("ensure_weight_tying"),
        invocation=_invocation(reader),
        base_model=reader.base_model(),
    )
    _check_together(read, reader)
    reader.check(name)
    return read


def _refused(config: Mapping[str, Any]) -> list[str]:
    refused = refuse_options(config, _READ | HARMLESS, REFUSED)
    start = _start(config)
    if isinstance(start, dict | list) or start not in (*_PLAIN_STARTS, *STARTS):
        refused.append(
            f"init_lora_weights {start!r}: it changes the base's own weights in a way that the files don't tell; save "
            "the adapter converted to plain LoRA (save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return refused


def _start(config: Mapping[str, Any]) -> Any:
    """Return init_lora_weights, in lower case where PEFT takes any case (tuners/lora/layer.py, update_layer)."""
    start = config.get("init_lora_weights", True)
    return start.lower() if isinstance(start, str) and start.lower() in ("gaussian", "mica", OLORA) else start


def _tokens(reader: FieldReader) -> Mapping[str, tuple[int, ...]]:
    value = reader.config.get("trainable_token_indices")
    if value in NEUTRAL:
        return {}
    given = value if isinstance(value, dict) else {"": value}
    found = {}
    for module, tokens in given.items():
        field = f"trainable_token_indices.{module}" if module else "trainable_token_indices"
        found[module] = reader.tokens(field, tokens)
        if len(set(found[module])) < len(found[module]):
            reader.faults.append(f"{field} names a token twice")
    return found


def _invocation(reader: FieldReader) -> tuple[int, ...]:
    value = reader.config.get("alora_invocation_tokens")
    tokens = () if value in NEUTRAL else reader.tokens("alora_invocation_tokens", value)
    if len(tokens) > MAX_INVOCATION:
        reader.faults.append(f"alora_invocation_tokens has {len(tokens)} tokens, expected at most {MAX_INVOCATION}")
    return tokens


def _check_together(read: LoraConfig, reader: FieldReader) -> None:
    """Refuse options that PEFT does not combine; what such a file would mean is anybody's guess."""
    if read.dora and (read.biased or read.start or read.invocation):
        reader.faults.append("use_dora stands beside lora_bias, aLoRA or an init_lora_weights that changes the base")
    if read.parameters and (read.dora or read.biased or read.start):
        reader.faults.append("target_parameters stands beside use_dora, lora_bias or an init_lora_weights of its own")
    if read.invocation and (read.saved or read.tokens or read.bias != "none" or read.start == OLORA):
        reader.faults.append("alora_invocation_tokens stands beside options that change every token")
