"""Key-value caches of Transformers, widened, narrowed and joined: with padding that the mask hides, on the left where
tokens follow, on the right for the prompts of an encoder.

Padding is written as zeros: what is masked is still multiplied, and 0 · NaN is NaN.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch.nn import functional
from transformers import DynamicCache
from transformers.cache_utils import (
    DummyLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionCacheLayerMixin,
)

from graft_runtime.adapters.deltas import Prefix


def keeps_state(cache: DynamicCache) -> bool:
    """Tell whether a layer keeps a state instead of keys and values: padding would enter the state."""
    return any(isinstance(layer, LinearAttentionCacheLayerMixin) for layer in cache.layers)


def prefill(cache: DynamicCache, prefixes: Sequence[Prefix | None]) -> torch.Tensor:
    """Write what each row has before its first token, to the right; zeros before that.

    Returns:
        The mask, [rows, longest prefix].
    """
    longest = max(prefix.tokens for prefix in prefixes if prefix is not None)
    shape = next(prefix.keys for prefix in prefixes if prefix is not None)
    keys, values = (shape.new_zeros(len(prefixes), *shape.shape[:2], longest, shape.shape[3]) for _ in range(2))
    mask = torch.zeros(len(prefixes), longest, dtype=torch.long, device=shape.device)
    for row, prefix in enumerate(prefixes):
        if prefix is not None:
            first = longest - prefix.tokens
            keys[row, :, :, first:], values[row, :, :, first:], mask[row, first:] = prefix.keys, prefix.values, 1
    for layer in range(shape.shape[0]):
        cache.update(keys[:, layer], values[:, layer], layer)
    return mask


def can_join(cache: DynamicCache) -> bool:
    """Tell whether `join` knows every kind of layer in this cache."""
    return all(type(layer) in (DynamicLayer, DynamicSlidingWindowLayer, DummyLayer) for layer in cache.layers)


def join(cache: DynamicCache, other: DynamicCache) -> None:
    """Add the rows of another cache of the same model after those of the first, padded on the left to the longer."""
    longest = max(cache.get_seq_length(), other.get_seq_length())
    pad_left(cache, longest - cache.get_seq_length())
    pad_left(other, longest - other.get_seq_length())
    for layer, added in zip(cache.layers, other.layers, strict=True):
        if _holds(layer):
            layer.keys = torch.cat([layer.keys, added.keys])
            layer.values = torch.cat([layer.values, added.values])


def join_right(cache: DynamicCache, other: DynamicCache) -> None:
    """Add the rows of the other cache, padded to the longer on the right."""
    for layer, added in zip(cache.layers, other.layers, strict=True):
        if _holds(layer):
            longest = max(layer.keys.shape[-2], added.keys.shape[-2])
            layer.keys = torch.cat([_padded_right(keys, longest) for keys in (layer.keys, added.keys)])
            layer.values = torch.cat([_padded_right(values, longest) for values in (layer.values, added.values)])


def cut_right(cache: DynamicCache, length: int) -> None:
    """Keep the first `length` columns."""
    for layer in cache.layers:
        if _holds(layer):
            layer.keys, layer.values = layer.keys[:, :, :length], layer.values[:, :, :length]


def _padded_right(tensor: torch.Tensor, length: int) -> torch.Tensor:
    return functional.pad(tensor, (0, 0, 0, length - tensor.shape[-2]))


def pad_left(cache: DynamicCache, columns: int) -> None:
    """Change the cache as if each row had been this much longer, with padding before the row."""
    for layer in cache.layers:
        if _holds(layer) and columns:
            missing = _seen(layer, columns) - layer.keys.shape[-2]
            layer.keys = functional.pad(layer.keys, (0, 0, missing, 0))
            layer.values = functional.pad(layer.values, (0, 0, missing, 0))


def cut_left(cache: DynamicCache, columns: int) -> None:
    """Take away columns that are padding in every row."""
    for layer in cache.layers:
        if _holds(layer) and columns:
            surplus = layer.keys.shape[-2] - _seen(layer, -columns)
            layer.keys = layer.keys[:, :, surplus:]
            layer.values = layer.values[:, :, surplus:]


def _holds(layer: DynamicLayer | DummyLayer) -> bool:
    return isinstance(layer, DynamicLayer) and layer.is_initialized


def _seen(layer: DynamicLayer, more: int) -> int:
    """Return how many columns the layer keeps once the layer has seen this many more."""
    if isinstance(layer, DynamicSlidingWindowLayer):
        layer.cumulative_length += more
        return int(min(layer.cumulative_length, layer.sliding_window - 1))
    return int(layer.keys.shape[-2]) + more
