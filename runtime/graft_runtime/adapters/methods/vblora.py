"""VB-LoRA: A and B mixed of the vectors of one bank."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.gathered import MixedVectors
from graft_runtime.adapters.parts.part import Part, Roles


class VbLora(ModuleRecipe):
    """The recipe of one VB-LoRA adapter."""

    method = "VBLORA"
    title = "VB-LoRA"
    roles = {  # noqa: RUF012
        f".vblora_logits_{which}{ending}": which + role
        for which in "AB"
        for ending, role in (("", ""), ("_topk_indices", "_indices"), ("_topk_weights", "_weights"))
    }
    shared = {"base_model.vblora_vector_bank": "vector_bank"}  # noqa: RUF012
    options = frozenset(
        {"r", "num_vectors", "vector_length", "topk", "save_only_topk_weights", "vblora_dropout"}
        | {"init_vector_bank_bound", "init_logits_std"}
    )
    biases = "vblora_only"

    def configure(self, reader: FieldReader) -> None:
        self._said = {
            "r": reader.rank("r", reader.config.get("r", 4)),
            "n": reader.rank("num_vectors", reader.config.get("num_vectors", 256)),
            "v": reader.rank("vector_length", reader.config.get("vector_length", 256)),
            "k": reader.rank("topk", reader.config.get("topk", 2)),
        }
        reader.flag("save_only_topk_weights")

    def part(self, path: str, roles: Roles) -> Part:
        return MixedVectors(path, roles, self._said["k"])

    def contradictions(self, part: Part) -> Iterable[str]:
        sizes = part.sizes if isinstance(part, MixedVectors) else {}
        told = {"r": "r", "n": "num_vectors", "v": "vector_length", "k": "topk"}
        for size, expected in self._said.items():
            if sizes.get(size, expected) != expected:
                yield f"{part.path}: the tensors have {told[size]} = {sizes[size]}, the config says {expected}"
