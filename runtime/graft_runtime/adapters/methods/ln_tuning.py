"""LN tuning: norms, or whatever module it names, with parameters of the adapter's own."""

from __future__ import annotations

from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.whole import WholeModule


class LnTuning(ModuleRecipe):
    """The recipe of one LN tuning adapter."""

    method = "LN_TUNING"
    title = "LN tuning"
    roles = {".ln_tuning_layers.weight": "weight", ".ln_tuning_layers.bias": "bias"}  # noqa: RUF012

    def part(self, path: str, roles: Roles) -> Part:
        return WholeModule(path, roles)
