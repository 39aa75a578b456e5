"""Trainable tokens by themselves: some rows of the embedding, and of the head that is tied to it."""

from __future__ import annotations

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.keys import is_embedding
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.whole import TrainedTokens


class TrainableTokens(ModuleRecipe):
    """The recipe of one adapter that only has tokens."""

    method = "TRAINABLE_TOKENS"
    title = "trainable tokens"
    roles = {".trainable_tokens_delta": "trainable_tokens_delta"}  # noqa: RUF012
    options = frozenset({"token_indices", "init_weights"})

    def configure(self, reader: FieldReader) -> None:
        self._has_own = False
        self._tokens = reader.tokens("token_indices", reader.config.get("token_indices"))
        if len(set(self._tokens)) < len(self._tokens):
            reader.faults.append("token_indices names a token twice")

    def part(self, path: str, roles: Roles) -> Part:
        copy = not super().targeted(path)
        self._has_own = self._has_own or not copy
        return TrainedTokens(path, roles, self._tokens, copy=copy)

    def targeted(self, path: str) -> bool:
        """Tell whether this module has tokens: PEFT saves a tied head beside the embedding that is named."""
        return super().targeted(path) or (self._has_own and is_embedding(path))
