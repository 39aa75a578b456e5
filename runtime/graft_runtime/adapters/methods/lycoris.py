"""What LoHa and LoKr have in common: a rank and an alpha that may differ by module."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader, first_match
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part
from graft_runtime.adapters.parts.products import Hadamard, Kronecker


class Lycoris(ModuleRecipe):
    """The recipe of one adapter of either."""

    options = frozenset(
        {"r", "alpha", "rank_pattern", "alpha_pattern", "rank_dropout", "module_dropout", "init_weights"}
        | {"use_effective_conv2d"}  # of convolutions
    )

    def configure(self, reader: FieldReader) -> None:
        self._rank = reader.rank("r", reader.config.get("r", 8))
        self._alpha = reader.number("alpha", reader.config.get("alpha", 8))
        self._rank_patterns, self._alpha_patterns = reader.rank_patterns(), reader.alpha_patterns()

    def rank_of(self, path: str) -> int:
        """Return `r`, or what the first matching key of rank_pattern says."""
        return int(first_match(self._rank_patterns, path, self._rank))

    def scale_of(self, path: str) -> float:
        """Return alpha/r."""
        return first_match(self._alpha_patterns, path, self._alpha) / self.rank_of(path)

    def contradictions(self, part: Part) -> Iterable[str]:
        assert isinstance(part, Hadamard | Kronecker)
        if part.file_rank not in (None, expected := self.rank_of(part.path)):
            yield f"{part.path}: the tensors have rank {part.file_rank}, r and rank_pattern say {expected}"
