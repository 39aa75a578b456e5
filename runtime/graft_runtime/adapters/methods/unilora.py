"""Uni-LoRA: A and B picked from one vector, by indices that the file holds."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.gathered import PickedNumbers
from graft_runtime.adapters.parts.part import Part, Roles


class UniLora(ModuleRecipe):
    """The recipe of one Uni-LoRA adapter."""

    method = "UNILORA"
    title = "Uni-LoRA"
    roles = {f".unilora_{role}": role for role in ("indices_A", "indices_B", "scales_A", "scales_B")}  # noqa: RUF012
    shared = {"base_model.unilora_theta_d": "theta_d"}  # noqa: RUF012
    options = frozenset(
        {"r", "proj_seed", "theta_d_length", "unilora_dropout", "save_indices", "init_theta_d_bound", "init_weights"}
    )
    biases = "unilora_only"

    def unserved(self, config: Mapping[str, Any]) -> Iterable[str]:
        if not config.get("save_indices"):
            yield (
                "save_indices false: which number goes where hangs on the order of all modules in training; set "
                "config.save_indices = True on its PeftConfig, load it with "
                "PeftModel.from_pretrained(base, directory, config=config), and save it again"
            )

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 4))
        self._length = reader.rank("theta_d_length", reader.config.get("theta_d_length", 256))

    def part(self, path: str, roles: Roles) -> Part:
        return PickedNumbers(path, roles)

    def contradictions(self, part: Part) -> Iterable[str]:
        sizes = part.sizes if isinstance(part, PickedNumbers) else {}
        if (sizes["r"], sizes["d"]) != (self._rank, self._length):
            yield (
                f"{part.path}: the tensors have r = {sizes['r']} and theta_d_length = {sizes['d']}, the config says "
                f"{self._rank} and {self._length}"
            )
