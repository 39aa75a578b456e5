"""Parts of tensors whose shapes are known: told once, by the names of their dimensions, and checked alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from graft_runtime.adapters.layout import BaseLayout, LinearShape
from graft_runtime.adapters.parts.part import Part, integers, misfit

Shape = tuple[str | int, ...]
"""Dimensions by name, or as a number where there is only one."""


@dataclass(frozen=True)
class ShapedPart(Part):
    """Some tensors on a linear module."""

    @property
    def shapes(self) -> Mapping[str, Shape]:
        """Return shapes by role. `in` and `out` are the module's; a name has one size in all tensors of the part."""
        raise NotImplementedError

    @property
    def rank(self) -> int:
        return self.sizes.get("r", 0)

    @property
    def sizes(self) -> Mapping[str, int]:
        """Return the sizes of the dimensions, as the tensors have them; where tensors differ, the first counts."""
        found: dict[str, int] = {}
        for role, shape in self.shapes.items():
            tensor = self.tensors.get(role)
            if tensor is not None and len(tensor.shape) == len(shape):
                for name, size in zip(shape, tensor.shape, strict=True):
                    found.setdefault(str(name), size)
        return found

    def faults(self) -> Iterable[str]:
        return self.missing() or self.misshapen() or integers(self.path, self.tensors)

    def missing(self) -> list[str]:
        """Return a fault for each role that no tensor has."""
        return [f"{self.path}: {role} is missing" for role in self.shapes if role not in self.tensors]

    def misshapen(self) -> list[str]:
        """Return the faults of tensors that contradict each other; every role has a tensor by then."""
        sizes = self.sizes
        faults = []
        for role, shape in self.shapes.items():
            given = self.tensors[role].shape
            expected = tuple(sizes.get(name) if isinstance(name, str) else name for name in shape)
            if given != expected or (0 in given and not self.may_be_empty):
                known = (f"{name} = {sizes[name]}" if name in sizes else name for name in map(str, shape))
                faults.append(f"{self.path}: {role} {given}, expected ({', '.join(known)})")
        return faults

    @property
    def may_be_empty(self) -> bool:
        """Tell whether a dimension of 0 means something."""
        return False

    def of_module(self, shape: LinearShape) -> Mapping[str, int]:
        """Return the sizes of the dimensions that the module decides."""
        return {"in": shape.input_features, "out": shape.output_features}

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        sizes = {**self.sizes, **self.of_module(layout.linear[self.path])}
        for role, shape in self.shapes.items():
            expected = tuple(sizes[name] if isinstance(name, str) else name for name in shape)
            yield from misfit(self.path, role, self.tensors[role], expected)
