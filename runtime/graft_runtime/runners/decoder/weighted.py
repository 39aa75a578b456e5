"""Attention in plain PyTorch: whatever a layer asks for, on every device and in every dtype."""

from __future__ import annotations

import torch
from torch.nn import functional

from graft_runtime.runners.decoder.attention import Score


def rows_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None, score: Score
) -> torch.Tensor:
    """Return what one token of each row makes of the row's keys and values, [rows, heads, value features].

    Args:
        q: [rows, heads, features].
        k: [rows, key heads, keys, features].
        v: [rows, key heads, keys, value features].
        seen: [rows, keys]; None: each row sees all.
        score: what the layer asks for.
    """
    grouped = q.view(q.shape[0], k.shape[1], -1, q.shape[-1])  # the queries that share a key stand in for time
    mask = None if seen is None else seen[:, None, None]
    return _weighted(grouped, k, v, mask, score).reshape(*q.shape[:2], v.shape[-1])


def span_attention(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, seen: torch.Tensor | None, score: Score
) -> torch.Tensor:
    """Return what the tokens of one sequence make of its keys and values, [tokens, heads, value features].

    Args:
        q: [tokens, heads, features].
        k: [1, key heads, keys, features].
        v: [1, key heads, keys, value features].
        seen: [tokens, keys]; None: each token sees all.
        score: what the layer asks for.
    """
    groups = q.shape[1] // k.shape[1]
    tokens, features = q.shape[0], q.shape[2]
    grouped = q.transpose(0, 1).reshape(1, k.shape[1], groups * tokens, features)
    mask = None if seen is None else seen.repeat(groups, 1)[None, None]
    made = _weighted(grouped, k, v, mask, score, group=tokens)
    return made.reshape(-1, tokens, v.shape[-1]).transpose(0, 1)  # `view` can't: some kernels put time first


def seen_of_span(start: int, end: int, window: int | None, device: torch.device) -> tuple[int, torch.Tensor]:
    """Return the first key that the tokens `start` … `end` of a sequence see, and which keys from it each sees."""
    low = 0 if window is None else max(0, start - window + 1)
    keys = torch.arange(low, end, device=device)[None]
    tokens = torch.arange(start, end, device=device)[:, None]
    seen = keys <= tokens
    if window is not None:
        seen &= keys > tokens - window
    return low, seen


def _weighted(
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: torch.Tensor | None, score: Score, *, group: int = 1
) -> torch.Tensor:
    """Return softmax(q·kᵀ)·v of [rows, key heads, queries, features]; `group` queries in a row are of one head."""
    if score.plain:
        return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=score.scale)
    scores = (q @ k.transpose(-1, -2)) * (score.scale if score.scale is not None else q.shape[-1] ** -0.5)
    if score.softcap is not None:
        scores = torch.tanh(scores / score.softcap) * score.softcap
    if mask is not None:
        scores = scores.masked_fill(~mask, float("-inf"))
    if score.sinks is not None:
        sinks = score.sinks.view(1, k.shape[1], -1, 1).repeat_interleave(group, dim=2).to(scores.dtype)
        scores = torch.cat([scores, sinks.expand(q.shape[0], -1, -1, -1)], dim=-1)
    weights = torch.softmax(scores, dim=-1, dtype=torch.float32).to(v.dtype)
    return weights[..., : k.shape[2]] @ v
