"""One vector of a text's hidden states, as sentence-transformers makes it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from graft_runtime.base.files import SINGLE_FILE, not_a_model
from graft_runtime.base.pooling import Dense, Pooling

_Layer = Callable[[torch.Tensor], torch.Tensor]
_LAST, _MEAN = ("lasttoken",), ("mean",)


class Pooler:
    """Makes vectors.

    Args:
        pooling: how.
        sees_ahead: whether a state has seen the tokens after its own. Where it has not, and the checkpoint says
            nothing, the last state stands for the text; else the mean of all does.
        name: how errors call the base model.
        device: of the hidden states.

    Raises:
        GraftError: NotAModel.
    """

    def __init__(self, pooling: Pooling, *, sees_ahead: bool, name: str, device: torch.device) -> None:
        self._modes: Sequence[str] = pooling.modes or (_MEAN if sees_ahead else _LAST)
        self._layers: list[_Layer] = [_layer(dense, name, device) for dense in pooling.dense]

    def vector(self, states: torch.Tensor) -> torch.Tensor:
        """Return the vector of states [tokens, features], in float32 and before it is scaled."""
        states = states.float()
        vector = torch.cat([_POOLED[mode](states) for mode in self._modes])
        for layer in self._layers:
            vector = layer(vector)
        return vector


def _weighted_mean(states: torch.Tensor) -> torch.Tensor:
    weights = torch.arange(1, len(states) + 1, device=states.device, dtype=states.dtype)
    return weights @ states / weights.sum()


_POOLED: dict[str, _Layer] = {
    "cls": lambda states: states[0],
    "max": lambda states: states.amax(0),
    "mean": lambda states: states.mean(0),
    "mean_sqrt_len_tokens": lambda states: states.sum(0) / len(states) ** 0.5,
    "weightedmean": _weighted_mean,
    "lasttoken": lambda states: states[-1],
}


def _layer(dense: Dense, name: str, device: torch.device) -> _Layer:
    weights = _weights(dense.folder, name)
    activation: Any = getattr(torch.nn, dense.activation)()
    weight = weights["linear.weight"].to(device, torch.float32)
    bias = weights["linear.bias"].to(device, torch.float32) if "linear.bias" in weights else None
    return lambda vector: activation(torch.nn.functional.linear(vector, weight, bias))


def _weights(folder: Path, name: str) -> dict[str, torch.Tensor]:
    try:
        weights: dict[str, torch.Tensor] = load_file(folder / SINGLE_FILE)
    except Exception as error:  # safetensors raises several kinds
        hint = "save the model again with sentence-transformers, which writes safetensors"
        raise not_a_model(name, f"its {folder.name}/{SINGLE_FILE} can't be read: {error}", hint) from error
    if "linear.weight" not in weights or not weights.keys() <= {"linear.weight", "linear.bias"}:
        raise not_a_model(name, f"its {folder.name}/{SINGLE_FILE} holds {', '.join(weights)}, expected a linear layer")
    return weights
