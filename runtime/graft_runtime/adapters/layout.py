"""What a base model offers to adapters: its modules and their sizes, without a weight."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import chain


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
        """Return the shape of the module's weight in a file."""
        shape = (self.output_features, self.input_features)
        return shape[::-1] if self.transposed else shape


@dataclass(frozen=True)
class EmbeddingShape:
    """A module that looks rows up."""

    rows: int
    features: int


@dataclass(frozen=True)
class ExpertsShape:
    """A module that holds the experts of a mixture, stacked.

    Attributes:
        experts: how many.
        parameters: name → inputs and outputs of one expert's projection.
        interleaved: whether gate and gated outputs alternate; else the gate's come first.
    """

    experts: int
    parameters: Mapping[str, tuple[int, int]]
    interleaved: bool = False


@dataclass(frozen=True)
class AttentionShape:
    """What the attention of a decoder keeps of one token: the same in every layer."""

    layers: int
    heads: int
    """Of keys and values."""
    features: int
    """Of a head."""


EXPERTS = "experts"
ROUTER = "a router"
INPUT_EMBEDDING = "the input embedding"
ATTENTION = "the attention of all layers"
"""Stand for the path of a module, where an adapter changes what every model has and its file names no module."""


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
    experts: Mapping[str, ExpertsShape] = field(default_factory=dict)
    routers: Mapping[str, LinearShape] = field(default_factory=dict)
    """Modules that choose experts by W·x and give more than that."""
    ties: Mapping[str, str] = field(default_factory=dict)
    """The input embedding → the head that shares its weight."""
    twins: tuple[str, ...] = ()
    """Further embeddings that share the input embedding's weight: those of an encoder and a decoder."""
    input_embedding: str | None = None
    """Of token ids; its path."""
    attention: AttentionShape | None = None
    """None where keys and values can't be handed in: several kinds of layers, or an encoder beside the decoder."""
    resizable: frozenset[str] = frozenset()
    """Modules of which an adapter may have more or fewer rows than the base: the input embedding and the heads."""
    former: Mapping[str, str] = field(default_factory=dict)
    """How earlier versions of Transformers called a module with modules of its own → its path."""
    whole: BaseLayout | None = None
    """Of the larger model that the checkpoint is of, where only the text model in it is loaded."""
    inside: Mapping[str, str] = field(default_factory=dict)
    """How paths of the text model begin in `whole` → how they begin here."""
    wrapper: str = ""
    """What the task model calls the model inside of it (`transformer`, `bert`)."""
    vocabulary: int = 0
    """Rows of its embedding of token ids."""

    @property
    def paths(self) -> Iterator[str]:
        """Return the paths of all modules."""
        return chain(self.linear, self.embeddings, self.norms, self.routers, self.other)

    def resized(self, rows: Mapping[str, int]) -> BaseLayout:
        """Return the layout with other numbers of rows, by the paths of linear modules and embeddings."""
        if not rows:
            return self
        linear = {path: replace(self.linear[path], output_features=rows[path]) for path in rows.keys() & self.linear}
        embeddings = {path: replace(self.embeddings[path], rows=rows[path]) for path in rows.keys() & self.embeddings}
        return replace(self, linear={**self.linear, **linear}, embeddings={**self.embeddings, **embeddings})

    def from_whole(self, path: str) -> str | None:
        """Return where a module of the larger model is in this one; None where it is not."""
        for outer, inner in self.inside.items():
            if path == outer or path.startswith(outer + "."):
                return inner + path[len(outer) :]
        return None

    def kind(self, path: str) -> str | None:
        """Return what a module is, for people; None when there is no such module."""
        if path in (INPUT_EMBEDDING, ATTENTION):
            there = self.input_embedding if path == INPUT_EMBEDDING else self.attention
            return None if there is None else path
        return self._kinds.get(path)

    @cached_property
    def _kinds(self) -> dict[str, str]:
        tables = {EXPERTS: self.experts, "a norm": self.norms, "an embedding": self.embeddings, "linear": self.linear}
        tables[ROUTER] = self.routers
        return {**self.other, **{path: kind for kind, table in tables.items() for path in table}}
