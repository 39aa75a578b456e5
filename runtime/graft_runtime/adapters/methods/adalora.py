"""AdaLoRA: y += s·B·(E ⊙ A)·x with s = alpha/(init_r + 1e-5), whatever rank a module has kept."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.lora_config import HARMLESS, REFUSED
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.products import SingularValues


class AdaLora(ModuleRecipe):
    """The recipe of one AdaLoRA adapter."""

    method = "ADALORA"
    title = "AdaLoRA"
    roles = {".lora_A": "lora_A", ".lora_B": "lora_B", ".lora_E": "lora_E"}  # noqa: RUF012
    options = HARMLESS | {
        *("init_r", "lora_alpha", "rank_pattern"),
        *("target_r", "tinit", "tfinal", "deltaT", "beta1", "beta2", "orth_reg_weight", "total_step"),
        *("r", "use_rslora", "alpha_pattern", "init_lora_weights"),  # of LoRA; PEFT does not read them for AdaLoRA
    }
    refused = REFUSED
    biases = "lora_only"

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("init_r", reader.config.get("init_r", 12))
        self._alpha = reader.number("lora_alpha", reader.config.get("lora_alpha", 8))
        self._kept = reader.kept_ranks("rank_pattern", ".lora_E")

    def part(self, path: str, roles: Roles) -> Part:
        kept = roles["lora_A"].shape[0] if "lora_A" in roles and roles["lora_A"].shape else 0
        alpha = self._alpha if self._alpha > 0 else kept
        return SingularValues(path, roles, alpha / (self._rank + 1e-5))

    def contradictions(self, part: Part) -> Iterable[str]:
        if part.rank != (expected := self._kept.get(part.path, self._rank)):
            yield f"{part.path}: the tensors have rank {part.rank}, init_r and rank_pattern say {expected}"
