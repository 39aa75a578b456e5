"""LoRA: y = W·x + s·B·(A·x), with s = alpha/r, or alpha/√r for rsLoRA; rank and alpha may differ by module.

The tensors lead: each of the file belongs to exactly one module and role. The config gives the scale, and is checked
against the tensors. `fan_in_fan_out` is not read: whether the base keeps a weight transposed is the base's to say.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from graft_runtime.adapters.keys import Keys, absent, by_module, incomplete, is_embedding, is_saved, whole_weights
from graft_runtime.adapters.methods.lora_config import read_lora_config
from graft_runtime.adapters.methods.recipe import (
    contradiction,
    each_in_time,
    foreign_tensors,
    misshapen,
    options_not_served,
)
from graft_runtime.adapters.parts.experts import StackedLowRank
from graft_runtime.adapters.parts.low_rank import EmbeddingLowRank, LinearLowRank
from graft_runtime.adapters.parts.part import Part, Roles, Tensor
from graft_runtime.adapters.parts.whole import TrainedTokens
from graft_runtime.adapters.tensors import TensorSpan

ROLES = {
    ".lora_A.weight": "lora_A",
    ".lora_B.weight": "lora_B",
    ".lora_B.bias": "lora_B.bias",
    ".lora_magnitude_vector": "lora_magnitude_vector",
    ".lora_magnitude_vector.weight": "lora_magnitude_vector",
    ".lora_embedding_A": "lora_embedding_A",
    ".lora_embedding_B": "lora_embedding_B",
    ".token_adapter.trainable_tokens_delta": "trainable_tokens_delta",
}


class Lora:
    """The recipe of one LoRA adapter."""

    method = "LORA"

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._name = name
        self._config = read_lora_config(config, name)
        self.base_model = self._config.base_model
        self.invocation = self._config.invocation
        self.saved = self._config.saved

    def targeted(self, path: str) -> bool:
        """Tell whether the config gives this module an adapter."""
        return path in self._config.targets

    def names_parameter(self, path: str) -> bool:
        """Tell whether target_parameters means this one."""
        return self._config.names_parameter(path)

    def parts(self, tensors: Mapping[str, TensorSpan]) -> list[Part]:
        """Make the parts of the tensors; see `Recipe`."""
        config = self._config
        keys = by_module(tensors, ROLES)
        if unserved := self._unserved(keys):
            raise options_not_served(self._name, self.method, unserved)
        parts, foreign = whole_weights(keys.rest, config.saved, biases=config.bias != "none")
        if foreign:
            raise foreign_tensors(self._name, self.method, foreign)
        stacks = self._stacks(keys)
        faults = self._absent(parts, keys)
        for (path, parameter), roles in stacks.items():
            rank = config.rank_of(f"{path}.{parameter}")
            scale = config.scale_of(f"{path}.{parameter}", rank)
            parts.append(StackedLowRank(path, roles, parameter, scale, rank))
        stacked = {path for path, _ in stacks}
        for path, roles in keys.modules.items():
            if _bare(path) in stacked:
                continue
            faults += self._strangers(path, roles)
            parts += self._module(path, roles)
        if faults := faults + incomplete(parts):
            raise misshapen(self._name, faults)
        low_ranks = [part for part in parts if isinstance(part, LinearLowRank | EmbeddingLowRank)]
        if faults := each_in_time(low_ranks, self._contradictions):
            raise contradiction(self._name, faults)
        return parts

    def _stacks(self, keys: Keys) -> dict[tuple[str, str], Roles]:
        """Return the tensors of stacked parameters, by module and parameter.

        PEFT wraps a module once a parameter, in the order in which the module has them. The names of those that lie
        further inside have `base_layer` in them; the name of the parameter is in none, so the order tells which it is.
        """
        found: dict[tuple[str, str], Roles] = {}
        if not self._config.parameters:
            return found
        for path in dict.fromkeys(map(_bare, keys.modules)):
            if path.rpartition(".")[2] != EXPERTS:
                continue
            names = [name for name in STACKED if self._config.names_parameter(f"{path}.{name}")]
            inner = [f"{path}{'.base_layer' * depth}" for depth in range(len(names) - 1, -1, -1)]
            for name, wrapped in zip(names, inner, strict=True):
                found[path, name] = keys.modules.get(wrapped, {})
        return found

    def _module(self, path: str, roles: Roles) -> Iterable[Part]:
        """Return the parts that the tensors of one module make."""
        linear = {role: tensor for role, tensor in roles.items() if role in LINEAR}
        embedding = {role: tensor for role, tensor in roles.items() if role in EMBEDDING}
        if linear:
            rank = _rank(linear.get("lora_A"))
            yield LinearLowRank(path, linear, self._config.scale_of(self._target(path), rank), self._config.start)
        if embedding:
            rank = _rank(embedding.get("lora_embedding_A"))
            yield EmbeddingLowRank(path, embedding, self._config.scale_of(path, rank))
        if "trainable_tokens_delta" in roles:
            delta = {"trainable_tokens_delta": roles["trainable_tokens_delta"]}
            yield TrainedTokens(path, delta, self._tokens_of(path), shared=self._config.shared_tokens)

    def _unserved(self, keys: Keys) -> list[str]:
        """Return the modules that an option is not served on, though the option is served on others."""
        option = "DoRA" if self._config.dora else self._config.start
        embeddings = [path for path, roles in keys.modules.items() if "lora_embedding_A" in roles]
        return [f"{path}: {option} on an embedding" for path in embeddings] if option else []

    def _absent(self, parts: Iterable[Part], keys: Keys) -> list[str]:
        """Return what the config speaks of and no tensor tells."""
        faults = absent(self._config.saved, parts)
        if self._config.tokens and not any("trainable_tokens_delta" in roles for roles in keys.modules.values()):
            faults.append("trainable_token_indices names tokens, trainable_tokens_delta is missing")
        return faults

    def _strangers(self, path: str, roles: Roles) -> Iterable[str]:
        """Return a fault for each tensor that only the config speaks of, and for each that only the file holds."""
        if "lora_A" in roles and self._config.dora != ("lora_magnitude_vector" in roles):
            said = "says DoRA" if self._config.dora else "does not say DoRA"
            yield f"{path}: use_dora {said}, lora_magnitude_vector is {'missing' if self._config.dora else 'there'}"
        if "lora_A" in roles and self._config.biased != ("lora_B.bias" in roles):
            yield f"{path}: lora_bias is {self._config.biased}, lora_B.bias {_there(roles, 'lora_B.bias')}"
        if "trainable_tokens_delta" in roles and not self._tokens_of(path):
            yield f"{path}: trainable_tokens_delta is there, trainable_token_indices does not name it"

    def _target(self, path: str) -> str:
        """Return what the config's patterns see of a module: target_parameters may name the weight of any module."""
        parameter = f"{path}.weight"
        return parameter if self._config.parameters and self._config.names_parameter(parameter) else path

    def _tokens_of(self, path: str) -> tuple[int, ...]:
        tokens = self._config.tokens
        return next((tokens[end] for end in tokens if end == path or path.endswith("." + end)), tokens.get("", ()))

    def _contradictions(self, part: LinearLowRank | EmbeddingLowRank) -> Iterable[str]:
        config = self._config
        target = self._target(part.path)
        if part.file_rank != (expected := config.rank_of(target)):
            yield f"{part.path}: the tensors have rank {part.file_rank}, r and rank_pattern say {expected}"
        named = target != part.path or part.path in config.targets
        if not named and not (config.tied and is_embedding(part.path)):
            yield f"{part.path}: it has tensors, but target_modules and the options beside it leave it out"
        if is_saved(part.path, config.saved):
            yield f"{part.path}: it has tensors of LoRA, but modules_to_save keeps it whole"


EXPERTS = "experts"
"""How every family of Transformers calls the module that stacks them."""
STACKED = ("gate_up_proj", "up_proj", "down_proj")
"""The parameters of experts that may be adapted, in the order in which modules have them."""
LINEAR = frozenset({"lora_A", "lora_B", "lora_B.bias", "lora_magnitude_vector"})
EMBEDDING = frozenset({"lora_embedding_A", "lora_embedding_B"})


def _rank(a: Tensor | None) -> int:
    return a.shape[0] if a is not None and a.shape and a.shape[0] else 1


def _bare(path: str) -> str:
    """Return the path of a module without the names of what wraps the module."""
    while path.endswith(".base_layer"):
        path = path.removesuffix(".base_layer")
    return path


def _there(roles: Roles, role: str) -> str:
    return "is there" if role in roles else "is missing"
