"""What a base model offers to adapters: its modules and their sizes, without a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace


@dataclass(frozen=True)
class LinearShape:
    """A module that computes y = W·x + b: nn.Linear, or a Conv1D of Transformers, whose weight lies transposed."""

    input_features: int
    output_features: int
    bias: bool = False
    transposed: bool = False
    """Whether files keep its weight as [input features, output features]."""

    @property
    def weight(self) -> tuple[int, int]:
        """The shape of its weight in a file."""
        shape = (self.output_features, self.input_features)
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class EmbeddingShape:
    """A module that looks rows up."""

    rows: int
    features: int


@dataclass(frozen=True)
class BaseLayout:
    """The modules of a base model by their path in the task model (`model.layers.0.self_attn.q_proj`)."""

    name: str
    """How errors call the base model."""
    linear: Mapping[str, LinearShape]
    other: Mapping[str, str] = field(default_factory=dict)
    """Every module that is in none of the other tables: its class."""
    embeddings: Mapping[str, EmbeddingShape] = field(default_factory=dict)
    norms: Mapping[str, Mapping[str, int]] = field(default_factory=dict)
    """Modules whose parameters are vectors: parameter → values."""
    ties: Mapping[str, str] = field(default_factory=dict)
    """The input embedding → the head that shares its weight."""
    input_embedding: str | None = None
    """Of token ids; its path."""
    resizable: frozenset[str] = frozenset()
    """Modules of which an adapter may have more or fewer rows than the base: the input embedding and the heads."""

    def resized(self, rows: Mapping[str, int]) -> BaseLayout:
        """With other numbers of rows, by the paths of linear modules and embeddings."""
        linear = {path: replace(self.linear[path], output_features=rows[path]) for path in rows.keys() & self.linear}
        embeddings = {path: replace(self.embeddings[path], rows=rows[path]) for path in rows.keys() & self.embeddings}
        return replace(self, linear={**self.linear, **linear}, embeddings={**self.embeddings, **embeddings})

    def kind(self, path: str) -> str | None:
        """What a module is, for people; None when there is none."""
        tables = {"linear": self.linear, "an embedding": self.embeddings, "a norm": self.norms}
        return next((kind for kind, table in tables.items() if path in table), self.other.get(path))
