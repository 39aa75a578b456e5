"""GraLoRA: a low rank for each block of a weight."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.blocks import Granular
from graft_runtime.adapters.parts.part import Part, Roles


class GraLora(ModuleRecipe):
    """The recipe of one GraLoRA adapter."""

    method = "GRALORA"
    title = "GraLoRA"
    roles = {  # noqa: RUF012
        ".gralora_A": "gralora_A",
        ".gralora_B": "gralora_B",
        ".gralora_A_general.weight": "gralora_A_general",
        ".gralora_B_general.weight": "gralora_B_general",
    }
    options = frozenset({"r", "alpha", "gralora_k", "hybrid_r", "gralora_dropout", "init_weights"})
    biases = "gralora_only"

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 32))
        self._alpha = reader.number("alpha", reader.config.get("alpha", 64))
        self._blocks = reader.rank("gralora_k", reader.config.get("gralora_k", 2))
        self._plain = reader.natural("hybrid_r", 0)

    def part(self, path: str, roles: Roles) -> Part:
        return Granular(path, roles, self._alpha / (self._rank + self._plain))

    def contradictions(self, part: Part) -> Iterable[str]:
        sizes = part.sizes if isinstance(part, Granular) else {}
        said = {"r": self._rank, "k": self._blocks, "h": self._plain}
        told = {"r": "r", "k": "gralora_k", "h": "hybrid_r"}
        for size, expected in said.items():
            if sizes.get(size, 0) != expected:
                yield f"{part.path}: the tensors have {told[size]} = {sizes.get(size, 0)}, the config says {expected}"
