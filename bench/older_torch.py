"""Stands in for tables of pages on a PyTorch that has none (they came with 2.13), where the engine needs them.

The same kernel is called without a table: it takes the place where each sequence begins. So a sequence has all its
pages from the start, one after the other. What this can't show is the table itself.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from graft_runtime.runners.decoder import over_pages
from graft_runtime.runners.decoder.pages import PageList, Pages
from torch.nn.attention import varlen


def _attend(  # noqa: PLR0917 - as varlen_attn
    q: torch.Tensor,
    keys: torch.Tensor,
    values: torch.Tensor,
    ends: torch.Tensor,
    _: torch.Tensor,
    max_q: int,
    max_k: int,
    *,
    return_aux: varlen.AuxRequest,
    scale: float | None,
    window_size: tuple[int, int],
    seqused_k: torch.Tensor,
    block_table: torch.Tensor,
    **__: Any,
) -> Any:
    starts = torch.nn.functional.pad(block_table[:, 0] * keys.shape[1], (0, 1))
    left, right = window_size
    out, sums, *_ = torch.ops.aten._flash_attention_forward(
        q,
        keys.flatten(0, 1),
        values.flatten(0, 1),
        ends,
        starts,
        max_q,
        max_k,
        0.0,
        False,
        False,
        scale=scale,
        window_size_left=left,
        window_size_right=right,
        seqused_k=seqused_k,
    )
    return (out, sums) if return_aux.lse else out


def stand_in() -> bool:
    """Put the stand-in in its place if it is needed, and tell whether it is."""
    if "block_table" in inspect.signature(varlen.varlen_attn).parameters:
        return False
    reserve = Pages.reserve

    def reserve_all(self: Pages, tokens: int, past: Sequence[bytes] = ()) -> PageList | None:
        self.block = 0  # what is shared lies elsewhere
        return reserve(self, self.longest) or reserve(self, tokens)

    vars(over_pages)["varlen_attn"] = _attend
    Pages.reserve = reserve_all  # type: ignore[method-assign]
    return True


STANDS_IN = stand_in()
