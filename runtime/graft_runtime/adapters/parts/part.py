"""What every part has: the tensors it accounts for, what it asks of the base, and how it becomes a delta."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar, NamedTuple, Protocol

from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.tensors import FLOATING, TensorSpan
from graft_runtime.contract.facts import ADDITIVE, DeltaKind

if TYPE_CHECKING:
    import torch

    from graft_runtime.adapters.deltas import ModuleDelta


class BaseModule(Protocol):
    """One module of the base. Read only: no adapter ever writes into the base."""

    @property
    def weight(self) -> torch.Tensor:
        """Return the weight, in the model's dtype, on the model's device.

        The weight is [output features, input features] of a linear module, whichever way the base keeps the weight;
        [rows, features] of an embedding.
        """
        ...

    @property
    def bias(self) -> torch.Tensor | None:
        """Return the bias: [output features]."""
        ...

    @property
    def quantised(self) -> bool:
        """Tell whether the weight is quantised: near to the one that adapters were begun on, and not the same."""
        ...


class Source(Protocol):
    """What a part is compiled from."""

    @property
    def layout(self) -> BaseLayout:
        """Return the layout of the base."""
        ...

    @property
    def largest(self) -> float:
        """Return a bound that no value of the file is beyond, in either direction; infinity when nobody looked."""
        ...

    def tensor(self, role: str) -> torch.Tensor:
        """Return this part's own tensor in this role, in float32, on the model's device."""
        ...

    def base(self) -> BaseModule:
        """Return the module of the base that the part changes."""
        ...


class Tensor(NamedTuple):
    """One tensor of the file."""

    name: str
    span: TensorSpan

    @property
    def shape(self) -> tuple[int, ...]:
        return self.span.shape


Roles = Mapping[str, Tensor]
"""The tensors of one part, by what they are in it: `A`, `B`, `magnitude`."""


@dataclass(frozen=True)
class Part:
    """Some tensors of an adapter and the module that they change.

    Attributes:
        path: of the module.
        tensors: by role.
    """

    path: str
    tensors: Roles

    kinds: ClassVar[tuple[str, ...]] = ("linear",)
    """Of modules that it can change, in the words of `BaseLayout.kind`."""

    @property
    def rank(self) -> int:
        """Return the number of columns of the bank that the part takes."""
        return 0

    @property
    def why_rank(self) -> str | None:
        """Return why the part's rank is more than the rank of its tensors, for people; None when the two are equal."""
        return None

    @property
    def work(self) -> int:
        """Return about how many operations it takes to compile the part, beside reading its tensors."""
        return 0

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        """Return all kinds of deltas that the part may be compiled to."""
        return frozenset({DeltaKind.LOW_RANK})

    @property
    def additive(self) -> bool:
        """Tell whether all that the part does is ΔW, which can be weighted and added to others."""
        return self.deltas <= ADDITIVE

    @property
    def biased(self) -> bool:
        """Tell whether the part adds a bias, also where the base has none."""
        return DeltaKind.OFFSET in self.deltas

    def faults(self) -> Iterable[str]:
        """Return what is wrong with the tensors by themselves."""
        return integers(self.path, self.tensors)

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        """Return what does not fit the module, which is there and of the right kind."""
        raise NotImplementedError

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        """Return the deltas by the path of the module, in float32. Most parts change their own module only."""
        raise NotImplementedError


def integers(path: str, tensors: Roles) -> list[str]:
    """Return the faults of tensors that hold no floating point numbers."""
    return [
        f"{path}: {role} has dtype {tensor.span.dtype}, expected a floating point one"
        for role, tensor in tensors.items()
        if tensor.span.dtype not in FLOATING
    ]


def misfit(path: str, role: str, tensor: Tensor, expected: tuple[int, ...]) -> list[str]:
    """Return one fault, or none if the tensor has the shape that the model needs."""
    if tensor.shape == expected:
        return []
    return [f"{path}.{role}: adapter {tensor.shape}, model needs {expected}"]
