"""Rows of unequal length as one tensor."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.model.load import BaseModel


def padding_token(base: BaseModel) -> int:
    """Return a token that the embedding has, which one does not matter: what it computes is masked away."""
    declared = declared_padding(base)
    return declared if declared is not None else 0


def declared_padding(base: BaseModel) -> int | None:
    """Return the token that the model's config names for padding, if the embedding has it."""
    declared = getattr(base.model.config.get_text_config(decoder=True), "pad_token_id", None)
    return declared if isinstance(declared, int) and 0 <= declared < base.vocabulary_size else None


def padded(rows: Sequence[Sequence[int]], fill: int, *, left: bool, device: torch.device) -> torch.Tensor:
    """Return the rows as [rows, tokens of the longest], int64."""
    longest = max(map(len, rows))
    padding = [[fill] * (longest - len(row)) for row in rows]
    pairs = zip(padding, rows, strict=True)
    return torch.tensor([[*pad, *row] if left else [*row, *pad] for pad, row in pairs], device=device)


def padding_mask(rows: Sequence[Sequence[int]], *, left: bool, device: torch.device) -> torch.Tensor:
    """Return 1 where `padded` has a row's own token, else 0."""
    return padded([[1] * len(row) for row in rows], 0, left=left, device=device)
