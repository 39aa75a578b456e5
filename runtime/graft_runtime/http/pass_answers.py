"""The shapes of what is answered by models that make no text, for the OpenAPI document."""

from __future__ import annotations

from typing import Literal

from graft_runtime.http.answers import Answer, Shape, Usage


class Classified(Shape):
    """What one text is."""

    index: int
    label: str
    """The likeliest."""
    probs: list[float]
    """Of each label."""
    num_classes: int


class Classification(Answer):
    """The answer of /classify."""

    object: Literal["list"]
    data: list[Classified]
    usage: Usage


class Embedding(Shape):
    """The vector of one text."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str
    """Numbers, or the base64 of 32-bit floats, the lowest byte first."""


class TextUsage(Shape):
    """Tokens of texts."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(Shape):
    """The answer of /v1/embeddings."""

    object: Literal["list"]
    data: list[Embedding]
    model: str
    usage: TextUsage


class Score(Shape):
    """How well the texts of a pair go together."""

    index: int
    object: Literal["score"]
    score: float


class ScoreList(Answer):
    """The answer of /score."""

    object: Literal["list"]
    data: list[Score]
    usage: TextUsage


class RankedText(Shape):
    """A document, as it came."""

    text: str


class Ranked(Shape):
    """One document and how well it goes with the query."""

    index: int
    """Among the documents of the request."""
    relevance_score: float


class RankedDocument(Ranked):
    """The same with its text."""

    document: RankedText


class Ranking(Shape):
    """The answer of /rerank, the best first."""

    id: str
    model: str
    results: list[RankedDocument | Ranked]
    usage: TextUsage
