"""Positions of a decoder's tokens where rows of a batch are padded on the left."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import nn


class Positions:
    """Lets a decoder count the positions of each row from its first token, not from its padding.

    Decoders with relative positions don't care. Those with a position embedding compute one row of positions for the
    whole batch, from the length of the cache: here every row gets its own.
    """

    def __init__(self, model: Any) -> None:
        found = getattr(model.get_decoder(), "embed_positions", None)
        takes = inspect.signature(found.forward).parameters if isinstance(found, nn.Module) else {}
        self._embedding = found if "position_ids" in takes else None
        self._padding: torch.Tensor | None = None

    def less(self, padding: torch.Tensor) -> Positions:
        """Make positions inside `with` count without the padding of each row, [rows]."""
        self._padding = padding if self._embedding is not None and bool(padding.any()) else None
        return self

    def __enter__(self) -> None:
        self._handle = (
            self._embedding.register_forward_hook(self._each, with_kwargs=True)
            if self._embedding is not None and self._padding is not None
            else None
        )

    def __exit__(self, *_: object) -> None:
        if self._handle is not None:
            self._handle.remove()

    def _each(self, module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: torch.Tensor) -> Any:
        """Return [rows, tokens, hidden] instead of [1, tokens, hidden] or [tokens, hidden]."""
        assert self._padding is not None
        positions = named.get("position_ids")
        if positions is None:
            return output
        forward = module.forward
        made = {
            padding: forward(*inputs, **(named | {"position_ids": (positions - padding).clamp(min=0)}))
            for padding in set(self._padding.tolist())
        }
        return torch.stack([made[padding].view(positions.shape[-1], -1) for padding in self._padding.tolist()])
