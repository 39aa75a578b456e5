"""IA3: a gain of the outputs, bias included, or of the inputs of feed-forward modules."""

from __future__ import annotations

from collections.abc import Iterable

from graft_runtime.adapters.fields import FieldReader
from graft_runtime.adapters.methods.module_recipe import ModuleRecipe
from graft_runtime.adapters.parts.part import Part, Roles
from graft_runtime.adapters.parts.vectors import Gain
from graft_runtime.adapters.patterns import Expression


class Ia3(ModuleRecipe):
    """The recipe of one IA3 adapter."""

    method = "IA3"
    title = "IA3"
    roles = {".ia3_l": "ia3_l"}  # noqa: RUF012
    options = frozenset({"feedforward_modules", "init_ia3_weights"})

    def configure(self, reader: FieldReader) -> None:
        self._feedforward = reader.modules("feedforward_modules")

    def part(self, path: str, roles: Roles) -> Part:
        of_input = roles["ia3_l"].shape[:1] == (1,)
        return Gain(path, roles, of_input and (roles["ia3_l"].shape != (1, 1) or self._is_feedforward(path)))

    def contradictions(self, part: Part) -> Iterable[str]:
        assert isinstance(part, Gain)
        if part.feedforward != self._is_feedforward(part.path):
            said = "an input" if part.feedforward else "an output"
            yield f"{part.path}: ia3_l is a gain of {said}, feedforward_modules says otherwise"

    def _is_feedforward(self, path: str) -> bool:
        """Apply PEFT's rule: a pattern of the whole path, or any of the endings that the config names, dots or not."""
        if isinstance(self._feedforward, Expression):
            return self._feedforward.matches(path)
        return path.endswith(tuple(self._feedforward or ()))
