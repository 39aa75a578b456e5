"""Fields of an adapter_config.json, read strictly: one error can list every fault."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from graft_runtime.adapters.patterns import Expression, UnsafePatternError, compile_pattern, layer_of
from graft_runtime.errors import ErrorCode, GraftError, shown

MAX_PATTERNS = 4096
"""Keys of rank_pattern or alpha_pattern: some trainers write one a module."""
MAX_PATTERNS_LENGTH = 1 << 18
"""Characters of all of them."""
MAX_COSTLY_PATTERNS = 64
"""Of those with so many ways through that they take an automaton."""
MAX_NAMES = 65_536
"""Items of a list: modules, tokens."""
COMMON = frozenset(
    {"peft_type", "task_type", "auto_mapping", "peft_version", "base_model_name_or_path", "revision", "inference_mode"}
)
"""They change nothing in the forward pass of a saved adapter."""
NEUTRAL: tuple[Any, ...] = (None, False, "", [], {})


@dataclass(frozen=True)
class Pattern:
    """One key of rank_pattern or alpha_pattern, and its value."""

    expression: Expression
    value: float


def first_match(patterns: Iterable[Pattern], path: str, default: float) -> float:
    """Return the value of the first pattern that matches the path, in the order of the config."""
    return next((pattern.value for pattern in patterns if pattern.expression.matches(path)), default)


@dataclass(frozen=True)
class Targets:
    """Which modules PEFT gives an adapter.

    Attributes:
        target: a pattern or names; None when every linear module is one.
        exclude: what is left out.
        layers: only these, if the target is a list of names.
        layer_patterns: of what stands before the number of a layer; any name does without one.
    """

    target: Expression | frozenset[str] | None
    exclude: Expression | frozenset[str] | None = None
    layers: frozenset[int] | None = None
    layer_patterns: tuple[Expression, ...] = ()

    def __contains__(self, path: str) -> bool:
        if self.exclude is not None and names(self.exclude, path):
            return False
        if self.target is None:
            return True
        if isinstance(self.target, Expression) or path in self.target:
            return names(self.target, path)
        return names(self.target, path) and self._in_layers(path)

    def _in_layers(self, path: str) -> bool:
        return self.layers is None or layer_of(path, self.layer_patterns) in self.layers


def names(modules: Expression | frozenset[str], path: str) -> bool:
    """Tell whether a pattern, or one of these names, means the module: the whole path, or its end after a dot."""
    if isinstance(modules, Expression):
        return modules.matches(path)
    dot = path.rfind(".")
    while dot >= 0:
        if path[dot + 1 :] in modules:
            return True
        dot = path.rfind(".", 0, dot)
    return path in modules


def refuse_options(config: Mapping[str, Any], read: frozenset[str], refused: Mapping[str, str]) -> list[str]:
    """Return the options of a config that are set and that nobody reads.

    Args:
        config: all of it.
        read: fields that are read, or that change nothing.
        refused: what a field asks for, for people.
    """
    return [
        f"{key}: {refused.get(key, 'an option that Graft does not know')}"
        for key, value in config.items()
        if key not in COMMON and key not in read and value not in NEUTRAL
    ]


class FieldReader:
    """Reads values and notes what is wrong with them, so that one error can list every fault."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self.faults: list[str] = []

    def rank(self, field: str, value: Any) -> int:
        if type(value) is int and 1 <= value <= 1 << 20:
            return value
        self.faults.append(f"{field} is {value!r}, expected a whole number of at least 1")
        return 1

    def natural(self, field: str, default: int) -> int:
        """Read a whole number of at least 0."""
        value = self.config.get(field, default)
        if type(value) is int and 0 <= value < 1 << 63:
            return value
        self.faults.append(f"{field} is {shortened(value)}, expected a whole number of at least 0")
        return default

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

    def patterns(self, field: str) -> list[tuple[str, Expression, Any]]:
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

    def rank_patterns(self) -> tuple[Pattern, ...]:
        """Read rank_pattern."""
        patterns = self.patterns("rank_pattern")
        return tuple(Pattern(made, self.rank(f"rank_pattern.{key}", value)) for key, made, value in patterns)

    def kept_ranks(self, field: str, ending: str) -> dict[str, int]:
        """Return how many of each module's singular values are left (AdaLoRA), by the module's path.

        The config's field holds path + ending → a list of truths.
        """
        value = self.config.get(field) or {}
        lists = value.values() if isinstance(value, dict) else ()
        if not isinstance(value, dict) or not all(
            isinstance(kept, list) and all(isinstance(item, bool) for item in kept) for kept in lists
        ):
            self.faults.append(f"{field} is {shortened(value)}, expected lists of true and false by parameter")
            return {}
        return {key.removesuffix(ending): sum(kept) for key, kept in value.items()}

    def alpha_patterns(self) -> tuple[Pattern, ...]:
        """Read alpha_pattern."""
        patterns = self.patterns("alpha_pattern")
        return tuple(Pattern(made, self.number(f"alpha_pattern.{key}", value)) for key, made, value in patterns)

    def modules(self, field: str) -> Expression | frozenset[str] | None:
        value = self.config.get(field)
        if value is None or (field == "exclude_modules" and value in NEUTRAL):
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
        if isinstance(self.config.get("target_modules"), str):
            self.faults.append("layers_to_transform is set, expected a list in target_modules beside it")
        layers = value if isinstance(value, list) else [value]
        if all(type(layer) is int and layer >= 0 for layer in layers):
            return frozenset(layers)
        self.faults.append(f"layers_to_transform is {value!r}, expected natural numbers")
        return None

    def layer_patterns(self) -> tuple[Expression, ...]:
        value = self.config.get("layers_pattern") or []
        patterns = [value] if isinstance(value, str) else value
        if not isinstance(patterns, list) or not all(isinstance(pattern, str) for pattern in patterns):
            self.faults.append(f"layers_pattern is {value!r}, expected a name or a list of names")
            return ()
        if patterns and isinstance(self.config.get("target_modules"), str):
            self.faults.append("layers_pattern is set, expected a list in target_modules beside it")
        if len(patterns) > MAX_COSTLY_PATTERNS:
            self.faults.append(f"layers_pattern has {len(patterns)} items, expected at most {MAX_COSTLY_PATTERNS}")
            return ()
        compiled = [self._compile("layers_pattern", pattern) for pattern in patterns]
        return tuple(expression for expression in compiled if expression is not None)

    def targets(self) -> Targets:
        """Read target_modules and the options beside it."""
        return Targets(
            self.modules("target_modules"), self.modules("exclude_modules"), self.layers(), self.layer_patterns()
        )

    def names(self, field: str) -> tuple[str, ...]:
        """Read a list of names."""
        value = self.config.get(field)
        if value in NEUTRAL:
            return ()
        if (
            isinstance(value, list)
            and len(value) <= MAX_NAMES
            and all(isinstance(item, str) and item for item in value)
        ):
            return tuple(value)
        self.faults.append(f"{field} is {shortened(value)}, expected a list of names")
        return ()

    def tokens(self, field: str, value: Any) -> tuple[int, ...]:
        """Read a list of token ids."""
        natural = isinstance(value, list) and all(type(item) is int and 0 <= item < 1 << 31 for item in value)
        if natural and 0 < len(value) <= MAX_NAMES:
            return tuple(value)
        self.faults.append(f"{field} is {shortened(value)}, expected a list of token ids")
        return ()

    def choice(self, field: str, choices: tuple[Any, ...]) -> Any:
        """Read one of these values; return the first value where the field is missing or null."""
        value = self.config.get(field)
        if value is None:
            return choices[0]
        if value not in choices:
            self.faults.append(f"{field} is {shortened(value)}, expected one of {', '.join(map(repr, choices))}")
            return choices[0]
        return value

    def base_model(self) -> str | None:
        """Return the base model that the adapter says that it was trained for; the name is only told, never opened."""
        value = self.config.get("base_model_name_or_path")
        return value if isinstance(value, str) else None

    def check(self, name: str) -> None:
        """Check that no fault was noted. Raises GraftError: InvalidConfig with every fault that was noted."""
        if self.faults:
            raise GraftError(
                ErrorCode.INVALID_CONFIG,
                f"adapter_config.json of adapter `{name}` has values without a meaning",
                details=shown(self.faults),
                hint="correct them, or save the adapter again with peft's save_pretrained()",
            )

    def _compile(self, field: str, pattern: str, wrapped: str = "{}") -> Expression | None:
        try:
            return compile_pattern(pattern, wrapped)
        except UnsafePatternError as error:
            self.faults.append(f"{field} {pattern[:80]!r}: {error}")
            return None


def shortened(value: Any) -> str:
    """Return a value of a stranger's config as short text, for an error."""
    text = repr(value)
    return text if len(text) <= 80 else text[:77] + "..."
