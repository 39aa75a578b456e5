"""What a base model offers to adapters: its modules and their sizes, without a weight."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class LinearShape:
    """A module that computes y = W·x: nn.Linear, or a Conv1D of Transformers, whose weight lies transposed."""

    input_features: int
    output_features: int


@dataclass(frozen=True)
class BaseLayout:
    """The modules of a base model by their path in the task model (`model.layers.0.self_attn.q_proj`)."""

    name: str
    """How errors call the base model."""
    linear: Mapping[str, LinearShape]
    other: Mapping[str, str] = field(default_factory=dict)
    """Every other module: its class."""
