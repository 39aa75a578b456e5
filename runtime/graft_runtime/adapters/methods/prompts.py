"""Prompt tuning, P-tuning and prefix tuning: virtual tokens before each prompt, as PEFT folds them at saving."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from graft_runtime.adapters.fields import FieldReader, refuse_options
from graft_runtime.adapters.layout import ATTENTION, INPUT_EMBEDDING
from graft_runtime.adapters.methods.recipe import contradiction, foreign_tensors, misshapen
from graft_runtime.adapters.parts.part import Part, Tensor
from graft_runtime.adapters.parts.virtual import ROLE, KeysAndValues, Prompt, VirtualTokens
from graft_runtime.adapters.tensors import TensorSpan
from graft_runtime.errors import ErrorCode, GraftError, shown

_READ = frozenset(
    {"num_virtual_tokens", "token_dim", "num_transformer_submodules", "num_attention_heads", "num_layers"}
    | {"modules_to_save", "encoder_reparameterization_type", "encoder_hidden_size", "encoder_num_layers"}
    | {"encoder_dropout", "prefix_projection", "init_weights", "prompt_tuning_init", "prompt_tuning_init_text"}
    | {"tokenizer_name_or_path", "tokenizer_kwargs"}
)
"""The tokenizer's fields are of the training: never opened."""
MAX_VIRTUAL_TOKENS = 4096


class Prompts:
    """The recipe of one adapter of virtual tokens."""

    part: type[VirtualTokens]
    path: str
    method: str
    invocation: tuple[int, ...] = ()

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        self._name = name
        refused = refuse_options(config, _READ, {})
        if config.get("num_transformer_submodules") not in (None, 1):
            refused.append("num_transformer_submodules: virtual tokens for an encoder and a decoder")
        if config.get("modules_to_save"):
            refused.append("modules_to_save: whole modules saved beside virtual tokens")
        if refused:
            raise GraftError(
                ErrorCode.UNSUPPORTED_METHOD,
                f"adapter `{name}` uses options of {self.method} that Graft does not serve",
                details=shown(refused, 8),
                hint="train it without them",
            )
        reader = FieldReader(config)
        self._tokens = reader.rank("num_virtual_tokens", config.get("num_virtual_tokens"))
        self.base_model = reader.base_model()
        if self._tokens > MAX_VIRTUAL_TOKENS:
            reader.faults.append(f"num_virtual_tokens is {self._tokens}, expected at most {MAX_VIRTUAL_TOKENS}")
        reader.check(name)

    def parts(self, tensors: Mapping[str, TensorSpan]) -> list[Part]:
        """Make the part of the tensors; see `Recipe`."""
        if foreign := [tensor for tensor in tensors if tensor != ROLE]:
            raise foreign_tensors(self._name, self.method, foreign)
        if ROLE not in tensors:
            raise misshapen(self._name, [f"{ROLE} is missing"])
        part = self.part(self.path, {ROLE: Tensor(ROLE, tensors[ROLE])})
        if faults := list(part.faults()):
            raise misshapen(self._name, faults)
        if part.shape[0] != self._tokens:
            said = f"{ROLE} has {part.shape[0]} rows, num_virtual_tokens says {self._tokens}"
            raise contradiction(self._name, [said])
        return [part]


class PromptTuning(Prompts):
    """Embeddings, trained by themselves."""

    method, part, path = "PROMPT_TUNING", Prompt, INPUT_EMBEDDING


class PTuning(Prompts):
    """Embeddings, trained through an encoder (https://arxiv.org/abs/2103.10385)."""

    method, part, path = "P_TUNING", Prompt, INPUT_EMBEDDING


class PrefixTuning(Prompts):
    """Keys and values."""

    method, part, path = "PREFIX_TUNING", KeysAndValues, ATTENTION
