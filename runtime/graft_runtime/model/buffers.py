"""Tensors that are filled in place: in steps of a size that was there before, each is where it was."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

SMALLEST = 64
"""Values that a buffer has room for at first; it doubles until what is asked for fits."""


class Buffers:
    """The device tensors of a step, by name. What one step left is overwritten by the next.

    Args:
        device: of all of them.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pinned = device.type == "cuda" and torch.cuda.is_available()  # the host need not wait for such a copy
        self._kept: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def view(self, name: str, *shape: int, dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Return a contiguous tensor of this shape, which holds anything. It is valid until the name is used again."""
        size = math.prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < size:
            room = max(SMALLEST, 1 << (size - 1).bit_length())
            with torch.inference_mode(mode=False):  # or it could be written to in inference mode only
                kept = self._kept[name, dtype] = torch.empty(room, dtype=dtype, device=self._device)
        return kept[:size].view(shape)

    def fill(self, name: str, values: Sequence[int], dtype: torch.dtype = torch.int64) -> torch.Tensor:
        """Return these values."""
        given = torch.tensor(values, dtype=dtype, pin_memory=self._pinned)
        return self.view(name, len(values), dtype=dtype).copy_(given, non_blocking=True)
