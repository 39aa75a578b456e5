"""Virtual tokens: trained embeddings, or keys and values, that stand before the first token of a prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import ClassVar

from graft_runtime.adapters.deltas import ModuleDelta, Prefix
from graft_runtime.adapters.layout import ATTENTION, INPUT_EMBEDDING, BaseLayout
from graft_runtime.adapters.parts.part import Part, Source, integers
from graft_runtime.contract.facts import DeltaKind

ROLE = "prompt_embeddings"


@dataclass(frozen=True)
class VirtualTokens(Part):
    """What prompt tuning, P-tuning and prefix tuning save: one tensor, [virtual tokens, features]."""

    @property
    def shape(self) -> tuple[int, ...]:
        return self.tensors[ROLE].shape

    def faults(self) -> Iterable[str]:
        if len(self.shape) != 2 or 0 in self.shape:
            return [f"{ROLE}: {self.shape}, expected (virtual tokens, features)"]
        return integers(ROLE, self.tensors)


@dataclass(frozen=True)
class Prompt(VirtualTokens):
    """Embeddings (https://arxiv.org/abs/2104.08691). What scales an embedding does not scale them."""

    kinds: ClassVar = (INPUT_EMBEDDING,)

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.PROMPT})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        assert layout.input_embedding is not None
        features = layout.embeddings[layout.input_embedding].features
        if self.shape[1] != features:
            yield f"{ROLE}: adapter {self.shape}, model needs {(self.shape[0], features)}"

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        assert source.layout.input_embedding is not None
        return {source.layout.input_embedding: ModuleDelta(prompt=source.tensor(ROLE))}


@dataclass(frozen=True)
class KeysAndValues(VirtualTokens):
    """Keys and values of every layer (https://arxiv.org/abs/2101.00190), as [tokens, layers · 2 · heads · features]."""

    kinds: ClassVar = (ATTENTION,)

    @property
    def deltas(self) -> frozenset[DeltaKind]:
        return frozenset({DeltaKind.PREFIX})

    def misfits(self, layout: BaseLayout) -> Iterable[str]:
        shape = layout.attention
        assert shape is not None
        features = shape.layers * 2 * shape.heads * shape.features
        if self.shape[1] != features:
            yield (
                f"{ROLE}: adapter {self.shape}, model needs {(self.shape[0], features)}: {shape.layers} layers of "
                f"keys and values of {shape.heads} heads with {shape.features} features"
            )

    def compile(self, source: Source) -> Mapping[str, ModuleDelta]:
        return {}

    def prefix(self, source: Source) -> Prefix:
        """Return the keys and values, in float32."""
        shape = source.layout.attention
        assert shape is not None
        saved = source.tensor(ROLE).view(self.shape[0], shape.layers, 2, shape.heads, shape.features)
        keys, values = saved.permute(2, 1, 3, 0, 4)
        return Prefix(keys.contiguous(), values.contiguous())
