"""The `adapter_config.json` of a LoRA adapter: what matters at inference, and what is refused by name."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from graft_runtime.adapters.patterns import Pattern, UnsafePatternError, compile_pattern, layer_of
from graft_runtime.errors import ErrorCode, GraftError, shown

MAX_PATTERNS = 4096
"""Keys of rank_pattern or alpha_pattern: some trainers write one a module."""

MAX_PATTERNS_LENGTH = 1 << 18
"""Characters of them all."""
MAX_COSTLY_PATTERNS = 64
"""Of those that take an automaton."""

_HARMLESS = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
    | {"lora_dropout", "fan_in_fan_out", "megatron_core", "loftq_config", "eva_config", "corda_config"}
    | {"lora_ga_config", "qalora_group_size", "runtime_config", "merge_weights"}
)
"""They change nothing in the forward pass of a saved adapter."""
_READ = frozenset(
    {"r", "lora_alpha", "use_rslora", "rank_pattern", "alpha_pattern", "target_modules", "exclude_modules"}
    | {"layers_to_transform", "layers_pattern", "bias", "init_lora_weights"}
)
_REFUSED = {
    "use_dora": "DoRA",
    "modules_to_save": "whole modules saved beside the adapter",
    "trainable_token_indices": "trainable tokens",
    "target_parameters": "LoRA on parameters, as of mixture-of-experts layers",
    "lora_bias": "a bias in lora_B",
    "alora_invocation_tokens": "aLoRA",
    "layer_replication": "replicated layers",
    "use_qalora": "QA-LoRA",
    "use_bdlora": "BD-LoRA",
    "arrow_config": "Arrow routing",
    "velora_config": "VeLoRA",
    "kasa_config": "KaSA",
    "monteclora_config": "MonteCLoRA",
    "megatron_config": "Megatron layers",
    "ensure_weight_tying": "adapters tied between embedding and head",
}
_PLAIN_STARTS = (None, True, False, "gaussian", "eva", "orthogonal", "mica")
"""Values of init_lora_weights that leave the base as it is."""
_NEUTRAL: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class _Pattern:
    expression: Pattern
    value: float


@dataclass(frozen=True)
class LoraConfig:
    """What the forward pass of one adapter depends on."""

    rank: int
    alpha: float
    rank_stabilized: bool
    rank_patterns: tuple[_Pattern, ...]
    alpha_patterns: tuple[_Pattern, ...]
    target: Pattern | frozenset[str] | None
    exclude: Pattern | frozenset[str] | None
    layers: frozenset[int] | None
    layer_patterns: tuple[Pattern, ...]
    base_model: str | None
    """What the adapter says that it was trained for; only told, never opened."""

    def rank_of(self, path: str) -> int:
        """`r`, or what the first matching key of rank_pattern says."""
        return int(_first_match(self.rank_patterns, path, self.rank))

    def alpha_of(self, path: str) -> float:
        """`lora_alpha`, or what the first matching key of alpha_pattern says."""
        return _first_match(self.alpha_patterns, path, self.alpha)

    def targets(self, path: str) -> bool:
        """Whether PEFT would give this module an adapter."""
        if self.exclude is not None and _names(self.exclude, path):
            return False
        if self.target is None:
            return True
        if isinstance(self.target, Pattern) or path in self.target:
            return _names(self.target, path)
        return _names(self.target, path) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        return self.layers is None or layer_of(path, self.layer_patterns) in self.layers


def read_lora_config(config: Mapping[str, Any], name: str) -> LoraConfig:
    """Checks every field.

    Raises:
        GraftError: UnsupportedMethod with every option that Graft does not serve, else InvalidConfig with every value
            that has no meaning.
    """
    if refused := _refused(config):
        raise GraftError(
            ErrorCode.UNSUPPORTED_METHOD,
            f"adapter `{name}` uses options of LoRA that Graft does not serve",
            details=shown(refused, 8),
            hint="train plain LoRA (rsLoRA, rank_pattern and alpha_pattern are served), or merge this adapter with "
            "peft's merge_and_unload() and serve the result as a base model",
        )
    reader = _Reader(config)
    read = LoraConfig(
        rank=reader.rank("r", config.get("r", 8)),
        alpha=reader.number("lora_alpha", config.get("lora_alpha", 8)),
        rank_stabilized=reader.flag("use_rslora"),
        rank_patterns=tuple(
            _Pattern(expression, reader.rank(f"rank_pattern.{key}", value))
            for key, expression, value in reader.patterns("rank_pattern")
        ),
        alpha_patterns=tuple(
            _Pattern(expression, reader.number(f"alpha_pattern.{key}", value))
            for key, expression, value in reader.patterns("alpha_pattern")
        ),
        target=reader.modules("target_modules"),
        exclude=reader.modules("exclude_modules"),
        layers=reader.layers(),
        layer_patterns=reader.layer_patterns(),
        base_model=base if isinstance(base := config.get("base_model_name_or_path"), str) else None,
    )
    reader.check_layers()
    if reader.faults:
        raise GraftError(
            ErrorCode.INVALID_CONFIG,
            f"adapter_config.json of adapter `{name}` has values without a meaning",
            details=shown(reader.faults),
            hint="correct them, or save the adapter again with peft's save_pretrained()",
        )
    return read


def _refused(config: Mapping[str, Any]) -> list[str]:
    refused = []
    for key, value in config.items():
        if key in _HARMLESS or (key not in _READ and value in _NEUTRAL):
            continue
        if key not in _READ:
            refused.append(f"{key}: {_REFUSED.get(key, 'an option that Graft does not know')}")
    if (bias := config.get("bias", "none")) not in ("none", None):
        refused.append(f"bias {bias!r}: biases of the base that were trained along")
    if (start := config.get("init_lora_weights", True)) not in _PLAIN_STARTS:
        refused.append(
            f"init_lora_weights {start!r}: it changes the base's own weights; save the adapter converted to plain LoRA "
            "(save_pretrained with path_initial_model_for_weight_conversion)"
        )
    return refused


def _first_match(patterns: tuple[_Pattern, ...], path: str, default: float) -> float:
    return next((pattern.value for pattern in patterns if pattern.expression.matches(path)), default)


def _names(modules: Pattern | frozenset[str], path: str) -> bool:
    if isinstance(modules, Pattern):
        return modules.matches(path)
    parts = path.split(".")
    return any(".".join(parts[start:]) in modules for start in range(len(parts)))


class _Reader:
    """Reads values and notes what is wrong with them, so that one error can list every fault."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.faults: list[str] = []

    def rank(self, field: str, value: Any) -> int:
        if type(value) is int and 1 <= value <= 1 << 20:
            return value
        self.faults.append(f"{field} is {value!r}, expected a whole number of at least 1")
        return 1

    def number(self, field: str, value: Any) -> float:
        if type(value) in (int, float) and abs(value) < 1 << 62 and math.isfinite(value):
            return float(value)
        self.faults.append(f"{field} is {value!r}, expected a finite number")
        return 1.0

    def flag(self, field: str) -> bool:
        value = self.config.get(field)
        if value is not None and not isinstance(value, bool):
            self.faults.append(f"{field} is {value!r}, expected true or false")
        return bool(value)

    def patterns(self, field: str) -> list[tuple[str, Pattern, Any]]:
        value = self.config.get(field) or {}
        if not isinstance(value, dict):
            self.faults.append(f"{field} is {value!r}, expected an object")
            return []
        if len(value) > MAX_PATTERNS:
            self.faults.append(f"{field} has {len(value)} keys, expected at most {MAX_PATTERNS}")
            return []
        if (length := sum(map(len, value))) > MAX_PATTERNS_LENGTH:
            self.faults.append(f"{field} has {length} characters of keys, expected at most {MAX_PATTERNS_LENGTH}")
            return []
        # PEFT's own rule: the first key that matches the path, or the end of it after a dot.
        compiled = [(key, self._compile(field, key, r"(.*\.)?({})"), item) for key, item in value.items()]
        if (costly := sum(not expression.cheap for _, expression, _ in compiled if expression)) > MAX_COSTLY_PATTERNS:
            self.faults.append(
                f"{field} has {costly} keys with several wildcards, expected at most {MAX_COSTLY_PATTERNS}"
            )
            return []
        return [(key, expression, item) for key, expression, item in compiled if expression is not None]

    def modules(self, field: str) -> Pattern | frozenset[str] | None:
        value = self.config.get(field)
        if value is None or (field == "exclude_modules" and value in _NEUTRAL):
            return None
        if isinstance(value, list) and all(isinstance(item, str) for item in value):
            return frozenset(value)
        if isinstance(value, str):
            return None if field == "target_modules" and value.lower() == "all-linear" else self._compile(field, value)
        self.faults.append(f"{field} is {value!r}, expected a list of names or one pattern")
        return None

    def layers(self) -> frozenset[int] | None:
        value = self.config.get("layers_to_transform")
        if value is None or value == []:
            if self.config.get("layers_pattern"):
                self.faults.append("layers_pattern is set, expected layers_to_transform beside it")
            return None
        layers = value if isinstance(value, list) else [value]
        if all(type(layer) is int and layer >= 0 for layer in layers):
            return frozenset(layers)
        self.faults.append(f"layers_to_transform is {value!r}, expected natural numbers")
        return None

    def check_layers(self) -> None:
        """PEFT refuses both of these beside a pattern: its own post_init raises."""
        if isinstance(self.config.get("target_modules"), str):
            self.faults += [
                f"{field} is set, expected a list in target_modules beside it"
                for field in ("layers_to_transform", "layers_pattern")
                if self.config.get(field) not in (None, [], "")
            ]

    def layer_patterns(self) -> tuple[Pattern, ...]:
        value = self.config.get("layers_pattern") or []
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            self.faults.append(f"layers_pattern is {value!r}, expected a name or a list of names")
            return ()
        if len(patterns) > MAX_COSTLY_PATTERNS:
            self.faults.append(f"layers_pattern has {len(patterns)} items, expected at most {MAX_COSTLY_PATTERNS}")
            return ()
        compiled = [self._compile("layers_pattern", pattern) for pattern in patterns]
        return tuple(expression for expression in compiled if expression is not None)

    def _compile(self, field: str, pattern: str, wrapped: str = "{}") -> Pattern | None:
        try:
            return compile_pattern(pattern, wrapped)
        except UnsafePatternError as error:
            self.faults.append(f"{field} {pattern[:80]!r}: {error}")
            return None
