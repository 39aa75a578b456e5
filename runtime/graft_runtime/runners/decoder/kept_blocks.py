"""Blocks of keys and values that are kept beside the extents, for sequences that begin as earlier ones did.

An extent moves, and goes with its sequence: so blocks are copied out of it and into it. That costs as much as reading
them once.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.runners.decoder.attention import LayerShape
from graft_runtime.runners.decoder.past import Recent

BLOCK = 16
"""Tokens of a block."""

Sides = tuple[Sequence[torch.Tensor], Sequence[torch.Tensor]]
"""Keys and values of one place, of each layer: [heads, tokens, features]."""


class KeptBlocks:
    """So many blocks; those that were used least recently go first.

    Args:
        layers: of the model, in order.
        tokens: that may be kept in all. Memory is taken when it is first written to.
        dtype: of keys and values.
        device: of keys and values.
    """

    def __init__(self, layers: Sequence[LayerShape], *, tokens: int, dtype: torch.dtype, device: torch.device) -> None:
        count = tokens // BLOCK

        def empty(heads: int, features: int) -> torch.Tensor:
            return torch.empty(count, heads, BLOCK, features, dtype=dtype, device=device)

        with torch.inference_mode(mode=False):  # or it could be written to in inference mode only
            keys = [empty(layer.heads, layer.key_features) for layer in layers]
            values = [empty(layer.heads, layer.value_features) for layer in layers]
        self._sides: Sides = keys, values
        self._free, self._recent, self._device = [*range(count)], Recent(), device

    def copy_into(self, place: Sides, keys: Sequence[bytes]) -> int:
        """Write what is known of a sequence's blocks into its place; return how many tokens that are."""
        numbers = self._recent.known(keys)
        if numbers:
            at = torch.tensor(numbers, device=self._device)
            for mine, theirs in zip(self._sides, place, strict=True):
                for kept, layer in zip(mine, theirs, strict=True):
                    _in_blocks(layer, 0, len(numbers)).copy_(kept[at])
        return len(numbers) * BLOCK

    def copy_from(self, place: Sides, keys: Sequence[bytes]) -> None:
        """Keep those of a sequence's blocks that are not there yet, as far as there is room for one sequence."""
        keys = keys[: len(self._free) + len(self._recent)]
        known = self._recent.known(keys)
        more = len(keys) - len(known)
        if not more:
            return
        numbers = [self._free.pop() if self._free else self._recent.pop() for _ in range(more)]
        at = torch.tensor(numbers, device=self._device)
        for mine, theirs in zip(self._sides, place, strict=True):
            for kept, layer in zip(mine, theirs, strict=True):
                kept[at] = _in_blocks(layer, len(known), len(keys))
        self._recent.put(keys, [*known, *numbers])


def _in_blocks(layer: torch.Tensor, first: int, end: int) -> torch.Tensor:
    """Return some blocks of a place as a view: [blocks, heads, BLOCK, features]."""
    heads, _, features = layer.shape
    return layer[:, first * BLOCK : end * BLOCK].view(heads, end - first, BLOCK, features).transpose(0, 1)
