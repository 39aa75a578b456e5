"""What the methods have in common that change modules one by one: config → expected tensors → parts.

A method's own module says which tensors a module has, which options it reads, and which part they make.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

from graft_runtime.adapters.fields import FieldReader, refuse_options
from graft_runtime.adapters.keys import absent, by_module, incomplete, is_saved, whole_weights
from graft_runtime.adapters.methods.recipe import (
    contradiction,
    each_in_time,
    foreign_tensors,
    misshapen,
    options_not_served,
)
from graft_runtime.adapters.parts.part import Part, Roles, Tensor
from graft_runtime.adapters.tensors import TensorSpan

_READ = frozenset(
    {"target_modules", "exclude_modules", "layers_to_transform", "layers_pattern", "modules_to_save", "fan_in_fan_out"}
)
"""Whether the base keeps a weight transposed (`fan_in_fan_out`) is the base's to say."""


class ModuleRecipe:
    """The recipe of one adapter; a method fills in the rest."""

    method: ClassVar[str]
    """PEFT's name of it."""
    title: ClassVar[str]
    """How people call it."""
    roles: ClassVar[Mapping[str, str]]
    """How a tensor's name ends → its role."""
    shared: ClassVar[Mapping[str, str]] = {}
    """Tensors that all modules read: name → role."""
    options: ClassVar[frozenset[str]] = frozenset()
    """Of the config: those that are read, or that change nothing in the forward pass of a saved adapter."""
    refused: ClassVar[Mapping[str, str]] = {}
    """What other options ask for, for people."""
    biases: ClassVar[str | None] = None
    """The value of `bias` that means those of the method's own modules: `vera_only`; None where there is no such."""

    invocation: tuple[int, ...] = ()

    def __init__(self, config: Mapping[str, Any], name: str) -> None:
        own = self.options | ({"bias"} if self.biases else set())
        if refused := [*refuse_options(config, _READ | own, self.refused), *self.unserved(config)]:
            raise options_not_served(name, self.title, refused)
        reader = FieldReader(config)
        self.name = name
        self.base_model = reader.base_model()
        self._targets = reader.targets()
        self.saved = reader.names("modules_to_save")
        self._bias = reader.choice("bias", ("none", "all", self.biases)) if self.biases else "none"
        self.configure(reader)
        reader.check(name)

    def unserved(self, config: Mapping[str, Any]) -> Iterable[str]:
        """Return the values of options that are refused by name."""
        return ()

    def configure(self, reader: FieldReader) -> None:
        """Read the options of the method."""

    def part(self, path: str, roles: Roles) -> Part:
        """Return the part that the tensors of one module make."""
        raise NotImplementedError

    def contradictions(self, part: Part) -> Iterable[str]:
        """Return what the config says otherwise than the tensors of a part; none of its tensors is missing."""
        return ()

    def targeted(self, path: str) -> bool:
        """Tell whether the config gives this module an adapter."""
        return path in self._targets

    def absences(self, parts: list[Part]) -> Iterable[str]:
        """Return what the config promises and the file does not hold."""
        return ()

    def parts(self, tensors: Mapping[str, TensorSpan]) -> list[Part]:
        """Make the parts of the tensors; see `Recipe`."""
        keys = by_module(tensors, self.roles)
        shared = {role: Tensor(name, keys.rest[name]) for name, role in self.shared.items() if name in keys.rest}
        rest = {name: span for name, span in keys.rest.items() if name not in self.shared}
        whole, foreign = whole_weights(rest, self.saved, biases=self._bias != "none")
        if foreign:
            raise foreign_tensors(self.name, self.title, foreign)
        own = [self.part(path, {**roles, **shared}) for path, roles in keys.modules.items()]
        faults = [*absent(self.saved, whole), *incomplete(own), *(fault for part in whole for fault in part.faults())]
        if faults := faults or list(self.absences(own)):
            raise misshapen(self.name, faults)
        if faults := each_in_time(own, self._contradictions):
            raise contradiction(self.name, faults)
        return [*whole, *own]

    def _contradictions(self, part: Part) -> Iterable[str]:
        if not self.targeted(part.path):
            yield f"{part.path}: it has tensors, but target_modules and the options beside it leave it out"
        if is_saved(part.path, self.saved):
            yield f"{part.path}: it has tensors of {self.title}, but modules_to_save keeps it whole"
        yield from self.contradictions(part)
