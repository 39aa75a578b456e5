"""Keys and values, and attention over them, as a decoder needs them; how Transformers' models call our attention.

Two implementations: `extents` with `over_extents`, and `pages` with `over_pages`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import AttentionInterface

from graft_runtime.adapters.deltas import Prefix

IMPLEMENTATION = "graft"

Attend = Callable[..., torch.Tensor]
_attend: ContextVar[Attend] = ContextVar("attend")


def _attention(
    module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
) -> tuple[torch.Tensor, None]:
    """Run attention for Transformers models: [1, heads, tokens, features] each, to [1, tokens, heads, features]."""
    return _attend.get()(module, query, key, value, mask, **options)[None], None


AttentionInterface.register(IMPLEMENTATION, _attention)


@contextmanager
def attending(attend: Attend) -> Iterator[None]:
    """Make the layers of a model that is set to IMPLEMENTATION call `attend` inside `with`.

    Args:
        attend: returns [tokens, heads, features].
    """
    token = _attend.set(attend)
    try:
        yield
    finally:
        _attend.reset(token)


@dataclass(frozen=True)
class LayerShape:
    """What attention keeps of one token in one layer."""

    heads: int
    key_features: int
    value_features: int

    @property
    def features(self) -> int:
        """Return how many numbers a token takes."""
        return self.heads * (self.key_features + self.value_features)


@dataclass(frozen=True)
class Family:
    """What attention needs to know of a model.

    Attributes:
        layers: what each keeps of a token.
        windows: how many tokens each sees, its own included; None: all.
        softcap: whether any bounds its scores.
    """

    layers: tuple[LayerShape, ...]
    windows: tuple[int | None, ...]
    softcap: bool


class Place(Protocol):
    """Where the keys and values of one sequence are."""

    @property
    def capacity(self) -> int:
        """Return how many tokens the place has room for."""
        ...

    @property
    def known(self) -> int:
        """Return how many tokens of the sequence were in the place from the start, from others before it."""
        ...


class KeysAndValues(Protocol):
    """The keys and values of the sequences that run.

    Attributes:
        tokens: that may be held in all.
        longest: tokens of the longest sequence.
        block: tokens of the blocks that are kept for later sequences; 0: none is.
    """

    tokens: int
    longest: int
    block: int

    @property
    def reserved(self) -> int:
        """Return how many tokens all places that are reserved have room for."""
        ...

    def reserve(self, tokens: int, past: Sequence[bytes] = ()) -> Any:
        """Return a place for so many tokens or more, None when there is no room.

        Args:
            tokens: of the sequence.
            past: the keys of the sequence's first blocks (`Past`): what is known of them is in the place.
        """
        ...

    def keep(self, place: Any, past: Sequence[bytes]) -> None:
        """Keep the first blocks of a place for sequences that begin with the same."""
        ...

    def grow(self, place: Any, tokens: int, used: int) -> Any:
        """Return a place for more tokens with the first `used` of this one, which is released; None without room."""
        ...

    def release(self, place: Any) -> None:
        """Let others have the room of a place."""
        ...

    def fill(self, place: Any, prefix: Prefix) -> None:
        """Write the first positions of a place."""
        ...

    def beside(self, lengths: Sequence[int]) -> KeysAndValues:
        """Return room for sequences of these lengths, for a trial, beside what requests use."""
        ...


@dataclass(frozen=True)
class Piece:
    """Some tokens of one sequence, `start` … `start + tokens`; all before are in its place already."""

    place: Any
    start: int
    tokens: int

    @property
    def end(self) -> int:
        return self.start + self.tokens


@dataclass(frozen=True)
class Score:
    """How a layer turns products into weights: what its attention call asks for."""

    scale: float | None
    softcap: float | None
    sinks: torch.Tensor | None
    """[heads]."""

    @property
    def plain(self) -> bool:
        """Tell whether the score is a softmax of scaled products and no more."""
        return self.softcap is None and self.sinks is None


class Arrangement(Protocol):
    """Where the tokens of one step are written and what they read: fixed until the step is done.

    Attributes:
        order: in which the pieces stand in the step, by their index.
    """

    order: Sequence[int]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, score: Score) -> torch.Tensor:
        """Write the keys and values of a step's tokens, and let each token read those of its sequence up to its own.

        Args:
            q: [tokens, heads, features].
            k: [tokens, key heads, features].
            v: [tokens, key heads, value features].
            layer: number of the layer.
            score: what the layer asks for.

        Returns:
            [tokens, heads, value features].
        """
        ...


class Attention(Protocol):
    """Attention over one kind of places."""

    def arrange(self, pieces: Sequence[Piece]) -> Arrangement:
        """Return the arrangement of a step of these pieces, each of its own sequence. The one before it is spent."""
        ...


def attends(arrangement: Arrangement) -> Attend:
    """Return what the layers of a model call while this step runs. The probe has seen to it that no option is lost."""

    def attend(
        module: Any, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: Any, **options: Any
    ) -> torch.Tensor:
        score = Score(options.get("scaling"), options.get("softcap"), options.get("s_aux"))
        q, k, v = (tensor[0].transpose(0, 1) for tensor in (query, key, value))
        return arrangement.attend(q, k, v, module.layer_idx, score)

    return attend
