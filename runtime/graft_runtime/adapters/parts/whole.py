"""Weights that an adapter has as its own, in the place of the base's: modules_to_save, biases, trained tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graft_runtime.adapters.deltas import ModuleDelta, Rows
from graft_runtime.adapters.layout import BaseLayout
from graft_runtime.adapters.parts.part import Part, Source, Tensor, misfit
from graft_runtime.contract.facts import DeltaKind

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class WholeModule(Part):
    """A copy of a module's weight and bias. Only the rows that differ from the base's are kept."""

    kinds: ClassVar = ("linear", "an embedding", "a norm")

    @property
    def rows(self) -> int | None:
        """Return the number of rows of the weight in the file; None where the file has no weight of two dimensions."""
        weight = self.tensors.get("weight")
        return weight.shape[0] if weight is not None and len(weight.shape) == 2 else None

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.WHOLE})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        expected = _parameters(layout, self.path)
        for role, shape in expected.items():
            if role not in self.tensors:
                yield f"{self.path}.{role}: missing, model needs {shape}"
        for role, tensor in self.tensors.items():
            if role not in expected:
                yield f"{self.path}.{role}: the model has no such parameter"
            else:
                yield from misfit(self.path, role, tensor, expected[role])

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        if self.path in source.layout.norms:
            return {self.path: ModuleDelta(parameters={role: source.tensor(role) for role in self.tensors})}
        weight = source.tensor("weight")
        shape = source.layout.linear.get(self.path)
        if shape is not None and shape.transposed:
            weight = weight.T
        rows = _differing(source, weight, source.tensor("bias") if "bias" in self.tensors else None)
        return {} if rows is None else {self.path: ModuleDelta(rows=rows)}


def _parameters(layout: BaseLayout, path: str) -> dict[str, tuple[int, ...]]:
    if path in layout.norms:
        return {name: (size,) for name, size in layout.norms[path].items()}
    if path in layout.embeddings:
        return {"weight": (layout.embeddings[path].rows, layout.embeddings[path].features)}
    shape = layout.linear[path]
    return {"weight": shape.weight} | ({"bias": (shape.output_features,)} if shape.bias else {})


def _differing(source: Source, weight: torch.Tensor, bias: torch.Tensor | None) -> Rows | None:
    """Return the rows that differ from the base's in the base's dtype; None when no row differs and the sizes agree."""
    base = source.base()
    shared = min(weight.shape[0], base.weight.shape[0])
    differs = weight.new_ones(weight.shape[0]).bool()
    differs[:shared] = (weight[:shared].to(base.weight.dtype) != base.weight[:shared]).any(dim=1)
    if bias is not None and base.bias is not None:
        differs[:shared] |= bias[:shared].to(base.bias.dtype) != base.bias[:shared]
    index = differs.nonzero()[:, 0]
    if not len(index) and weight.shape[0] == base.weight.shape[0]:
        return None
    return Rows(index, weight[index], None if bias is None else bias[index], weight.shape[0])


@dataclass(frozen=True)
class Bias(Part):
    """A bias that was trained along. PEFT writes it into the base; here it is the adapter's own."""

    kinds: ClassVar = ("linear", "a norm")

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.SHIFT, DeltaKind.WHOLE})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        bias = self.tensors["bias"]
        if self.path in layout.norms:
            size = layout.norms[self.path].get("bias")
        else:
            size = layout.linear[self.path].output_features if layout.linear[self.path].bias else None
        if size is None:
            return [f"{self.path}.bias: the model has none"]
        return misfit(self.path, "bias", bias, (size,))

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        bias, base = source.tensor("bias"), source.base().bias
        assert base is not None
        if (bias.to(base.dtype) == base).all():
            return {}
        if self.path in source.layout.norms:
            return {self.path: ModuleDelta(parameters={"bias": bias})}
        return {self.path: ModuleDelta(shift=bias - base.float())}


@dataclass(frozen=True)
class TrainedTokens(Part):
    """Rows of the embedding for some tokens: values of their own, not differences.

    Attributes:
        tokens: their ids, in the order of the file.
        copy: whether it repeats what the embedding has, if the base ties this head to it.
        shared: whether a tied head has them as well, and the encoder's and the decoder's own embeddings.
    """

    tokens: tuple[int, ...]
    copy: bool = False
    shared: bool = True

    kinds: ClassVar = ("an embedding", "linear")

    @property
    def delta(self) -> Tensor:
        return self.tensors["trainable_tokens_delta"]

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.WHOLE})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        embedding, head = layout.embeddings.get(self.path), layout.linear.get(self.path)
        assert embedding or head
        features = embedding.features if embedding else head.input_features if head else 0
        rows = embedding.rows if embedding else head.output_features if head else 0
        yield from misfit(self.path, "trainable_tokens_delta", self.delta, (len(self.tokens), features))
        if beyond := [token for token in self.tokens if token >= rows]:
            yield f"{self.path}: trains token {beyond[0]}, the model has {rows}"

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        import torch  # noqa: PLC0415 - the process that only checks adapters has none

        layout, values = source.layout, source.tensor("trainable_tokens_delta")
        if self.copy and self.path in layout.ties.values():
            return {}
        index, order = torch.tensor(self.tokens, device=values.device).sort()
        bias, count = None, layout.embeddings[self.path].rows if self.path in layout.embeddings else 0
        if self.path in layout.linear:
            base, count = source.base().bias, layout.linear[self.path].output_features
            if base is not None:
                bias = base.new_zeros(max(count, base.shape[0])).float()
                bias[: base.shape[0]] = base
        rows = Rows(index, values[order], None if bias is None else bias[index], count)
        paths = [self.path]
        if self.shared and self.path in layout.ties:
            paths += [layout.ties[self.path], *layout.twins]
        return {path: ModuleDelta(rows=rows) for path in paths}
