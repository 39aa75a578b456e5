"""BEFT: a bias added to the outputs of modules, whether the base has one there or not."""

from __future__ import annotations

from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.vectors import Offset


class Beft(ModuleRecipe):
    """The recipe of one BEFT adapter."""

    method = "BEFT"
    title = "BEFT"
    roles = {".beft_bias": "beft_bias"}  # noqa: RUF012
    options = frozenset({"init_weights"})

    def part(self, path: str, roles: Roles) -> Part:
        return Offset(path, roles)
