"""MiSS: one block for all shards of a weight."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.blocks import Shards
from graft_runtime.adapters.parts.part import Part, Roles


class Miss(ModuleRecipe):
    """The recipe of one MiSS adapter."""

    method = "MISS"
    title = "MiSS"
    roles = {".miss_block": "miss_block"}  # noqa: RUF012
    options = frozenset({"r", "mini_r", "miss_dropout", "init_weights"})
    biases = "MiSS_only"

    def unserved(self, config: Mapping[str, Any]) -> Iterable[str]:
        if config.get("init_weights") == "bat":
            yield "init_weights 'bat': it multiplies the base's weight by a block, which is no low rank"

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 64))
        self._kind = reader.choice("init_weights", (True, False, "mini"))
        self._mini = reader.rank("mini_r", reader.config.get("mini_r", 1))

    def part(self, path: str, roles: Roles) -> Part:
        return Shards(path, roles, self._kind == "mini")

    def contradictions(self, part: Part) -> Iterable[str]:
        assert isinstance(part, Shards)
        if part.rank != self._rank:
            yield f"{part.path}: the tensors have rank {part.rank}, r says {self._rank}"
        if part.repeated and part.sizes["mini_r"] != self._mini:
            yield f"{part.path}: the tensors have {part.sizes['mini_r']} outputs, mini_r says {self._mini}"
