"""DeLoRA: a low rank whose strength is learned apart from its direction."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader, first_match
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.of_base import Bounded
from graft_runtime.adapters.parts.part import Part, Roles

ROLES = ("delora_A", "delora_B", "delora_lambda", "delora_w_norm")


class DeLora(ModuleRecipe):
    """The recipe of one DeLoRA adapter."""

    method = "DELORA"
    title = "DeLoRA"
    roles = {f".{role}": role for role in ROLES}  # noqa: RUF012
    options = frozenset(
        {"r", "rank_pattern", "module_dropout", "init_weights"}
        | {"delora_lambda", "lambda_pattern"}  # where the training began
    )
    biases = "delora_only"

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 8))
        self._rank_patterns = reader.rank_patterns()

    def part(self, path: str, roles: Roles) -> Part:
        return Bounded(path, roles)

    def contradictions(self, part: Part) -> Iterable[str]:
        if part.rank != (expected := int(first_match(self._rank_patterns, part.path, self._rank))):
            yield f"{part.path}: the tensors have rank {part.rank}, r and rank_pattern say {expected}"
