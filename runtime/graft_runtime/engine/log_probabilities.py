"""What the model itself gives to tokens, before biases, penalties and temperature."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.engine.blocks import Blocks
from graft_runtime.messages import TokenLogprob

LEAST = -9999.0
"""What is told of a token that can't be: JSON has no infinity."""


def log_probabilities(logits: torch.Tensor, tokens: Sequence[int], tops: Sequence[int]) -> list[TokenLogprob]:
    """Return the log-probability of one token a row, and the likeliest tokens.

    Args:
        logits: [rows, vocabulary].
        tokens: of each row.
        tops: how many of the likeliest each row wants.
    """
    logits = logits.float()
    total = logits.logsumexp(-1, keepdim=True)
    own = logits.gather(1, torch.tensor(tokens, device=logits.device)[:, None])
    best, likeliest = Blocks(logits).likeliest(max(1, *tops))
    values = (torch.cat([own, best], dim=1) - total).clamp_(min=LEAST)
    rows = zip(values.tolist(), likeliest.tolist(), tops, strict=True)
    return [
        TokenLogprob(first, list(zip(top[:count], rest[:count], strict=True))) for (first, *rest), top, count in rows
    ]
