"""VeRA: vectors that scale a pair of random projections, which the file holds or the config's key makes again."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.projections import Projected, Projections


class Vera(ModuleRecipe):
    """The recipe of one VeRA adapter."""

    method = "VERA"
    title = "VeRA"
    roles = {".vera_lambda_b": "vera_lambda_b", ".vera_lambda_d": "vera_lambda_d"}  # noqa: RUF012
    shared = {"base_model.vera_A": "vera_A", "base_model.vera_B": "vera_B"}  # noqa: RUF012
    options = frozenset({"r", "projection_prng_key", "save_projection", "vera_dropout", "d_initial", "init_weights"})
    biases = "vera_only"

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 256))
        self._saves = reader.config.get("save_projection", True) is not False
        self._projections = Projections(reader.natural("projection_prng_key", 0))

    def part(self, path: str, roles: Roles) -> Part:
        self._projections.paths.append(path)
        return Projected(path, roles, self._projections)

    def contradictions(self, part: Part) -> Iterable[str]:
        if part.rank != self._rank:
            yield f"{part.path}: the tensors have rank {part.rank}, r says {self._rank}"
        if "vera_A" in part.tensors and not self._saves:
            yield f"{part.path}: save_projection is false, base_model.vera_A is there"

    def absences(self, parts: list[Part]) -> Iterable[str]:
        if self._saves and any("vera_A" not in part.tensors for part in parts):
            return ["save_projection is true, base_model.vera_A and base_model.vera_B are missing"]
        return []
