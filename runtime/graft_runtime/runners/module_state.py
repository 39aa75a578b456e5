"""What a model keeps in its own modules from one pass to the next, as RecurrentGemma does, instead of in a cache.

It belongs to the rows of one batch: each batch takes its own along, or others would go on from it.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

Place = tuple[nn.Module, str]
"""A module and the name of an attribute that is neither parameter nor buffer."""


class ModuleState:
    """The attributes of a model that passes change.

    Args:
        model: before its first pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self._modules = list(model.modules())
        self._before = self._tensors()
        self._places: list[Place] = []

    def find(self, rows: int) -> bool:
        """Look for what a pass of so many rows has left behind, and take it away. Returns whether there was any."""
        now = self._tensors()
        changed = [place for place, value in now.items() if self._before.get(place) is not value]
        self._places = [place for place in changed if now[place].dim() > 1 and now[place].shape[0] == rows]
        self.put(self.fresh())
        return bool(self._places)

    def fresh(self) -> list[torch.Tensor | None]:
        """Return what a batch begins with."""
        return [self._before.get(place) for place in self._places]

    def put(self, values: Sequence[torch.Tensor | None]) -> None:
        """Let the next pass go on from these."""
        for (module, name), value in zip(self._places, values, strict=True):
            setattr(module, name, value)

    def take(self) -> list[torch.Tensor | None]:
        """Return what the last pass has left."""
        return [getattr(module, name) for module, name in self._places]

    def _tensors(self) -> dict[Place, torch.Tensor]:
        return {
            (module, name): value
            for module in self._modules
            for name, value in vars(module).items()
            if isinstance(value, torch.Tensor)
        }
