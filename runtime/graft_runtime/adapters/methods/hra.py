"""HRA: reflections of the input of a weight."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.of_base import Reflections
from graft_runtime.adapters.parts.part import Part, Roles


class Hra(ModuleRecipe):
    """The recipe of one HRA adapter."""

    method = "HRA"
    title = "HRA"
    roles = {".hra_u": "hra_u"}  # noqa: RUF012
    options = frozenset({"r", "apply_GS", "init_weights"})
    biases = "hra_only"

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 8))
        self._orthogonal = reader.flag("apply_GS")

    def part(self, path: str, roles: Roles) -> Part:
        return Reflections(path, roles, self._orthogonal)

    def contradictions(self, part: Part) -> Iterable[str]:
        if part.rank != self._rank:
            yield f"{part.path}: the tensors have rank {part.rank}, r says {self._rank}"
