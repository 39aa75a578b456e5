"""Attention over pages: each row writes its keys and values to its own pages and reads nothing else.

A step is one row of tokens: first those of the sequences that decode, one each, then spans of prompts. Both read
through a table of pages: with PyTorch's flash kernel where that can do what the layer asks for, else from a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch.nn.attention.varlen import AuxRequest, varlen_attn

from graft_runtime.model.buffers import Buffers
from graft_runtime.runners.decoder.attention import Family, Piece, Score
from graft_runtime.runners.decoder.pages import PAGE, Pages, pages_for
from graft_runtime.runners.decoder.weighted import rows_attention, seen_of_span, span_attention

# cuDNN's kernels plan each new shape for some 25 ms.
torch.backends.cuda.enable_cudnn_sdp(False)

WIDEST_HEAD = 256
"""Features that the flash kernel takes."""
COPIED = 32 << 20
"""Bytes of keys, and as many of values, that are copied at once, unless a single row has more."""


@dataclass(frozen=True, eq=False)
class _Rows:
    """Some rows of a step and what they read.

    Attributes:
        tokens: of the step that are theirs.
        pieces: of each row.
        longest: tokens of the longest row.
        ends: [rows + 1], int32: where each row's tokens begin, and where the last row's end.
        lengths: [rows], int32: tokens that each has in its pages, those of this step included.
        table: [rows, pages], int32: the pages of each.
    """

    tokens: slice
    pieces: Sequence[Piece]
    longest: int
    ends: torch.Tensor
    lengths: torch.Tensor
    table: torch.Tensor


class PageArrangement:
    """A step over pages; see `Arrangement`."""

    def __init__(
        self,
        order: Sequence[int],
        pool: Pages,
        at: torch.Tensor,
        parts: Sequence[_Rows],
        attention: PageAttention,
    ) -> None:
        self.order = order
        self._pool, self._at, self._parts, self._attention = pool, at, parts, attention

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, score: Score) -> torch.Tensor:
        """Compute attention as `Arrangement` says."""
        keys, values, window = self._pool.keys[layer], self._pool.values[layer], self._attention.windows[layer]
        keys.flatten(0, 1).index_copy_(0, self._at, k)
        values.flatten(0, 1).index_copy_(0, self._at, v)
        read = _in_place if self._attention.in_place else _copied
        made = [read(q[part.tokens], (keys, values), part, window, score) for part in self._parts]
        return made[0] if len(made) == 1 else torch.cat(made)


def reads_in_place(family: Family, dtype: torch.dtype, device: torch.device) -> bool:
    """Tell whether the flash kernel can do what all layers ask for."""
    return (
        device.type == "cuda"
        and dtype in (torch.float16, torch.bfloat16)
        and not family.softcap
        and all(
            layer.key_features == layer.value_features <= WIDEST_HEAD and layer.key_features % 8 == 0
            for layer in family.layers
        )
    )


def _in_place(
    q: torch.Tensor, pool: tuple[torch.Tensor, torch.Tensor], rows: _Rows, window: int | None, score: Score
) -> torch.Tensor:
    """Read pages where they are, with PyTorch's flash kernel.

    One split: what splits leave of several rows is wrong in some steps (pytorch#194167), and a row's values would
    depend on how many are beside it. A sink is one more key without a value, which the sum of the weights shows.
    """
    alone = rows.longest == 1 and window is None and score.sinks is None  # the heads of a key then share its reads
    made = varlen_attn(
        q,
        *pool,
        rows.ends,
        rows.ends,
        rows.longest,
        rows.table.shape[1] * PAGE,
        scale=score.scale,
        window_size=(-1, -1) if alone else (-1 if window is None else window - 1, 0),
        enable_gqa=True,
        seqused_k=rows.lengths,
        block_table=rows.table,
        num_splits=1,
        return_aux=AuxRequest(lse=score.sinks is not None),
    )
    if score.sinks is None:
        assert isinstance(made, torch.Tensor)
        return made
    out, sums = made
    return out * torch.sigmoid(sums.T - score.sinks)[..., None].to(out.dtype)


def _copied(
    q: torch.Tensor, pool: tuple[torch.Tensor, torch.Tensor], rows: _Rows, window: int | None, score: Score
) -> torch.Tensor:
    """Read a copy of the pages. What a page holds beyond its sequence may be anything, and is zeroed in the copy."""
    if rows.longest == 1:
        at_once = max(1, COPIED // (rows.table.shape[1] * pool[0][0].nbytes))
        parts = (slice(first, first + at_once) for first in range(0, q.shape[0], at_once))
        return torch.cat([_copied_rows(q[part], pool, rows, part, window, score) for part in parts])
    made, first = [], 0
    for row, piece in enumerate(rows.pieces):
        low, seen = seen_of_span(piece.start, piece.end, window, q.device)
        numbers = rows.table[row, : pages_for(piece.end)]
        k, v = (pages[numbers].flatten(0, 1)[low : piece.end].transpose(0, 1)[None] for pages in pool)
        made.append(span_attention(q[first : first + piece.tokens], k, v, seen, score))
        first += piece.tokens
    return torch.cat(made)


def _copied_rows(  # noqa: PLR0917 - called once
    q: torch.Tensor,
    pool: tuple[torch.Tensor, torch.Tensor],
    rows: _Rows,
    part: slice,
    window: int | None,
    score: Score,
) -> torch.Tensor:
    """Compute some of the rows that decode."""
    table, lengths = rows.table[part], rows.lengths[part, None]
    at = torch.arange(table.shape[1] * PAGE, device=q.device)[None]
    written = at < lengths
    seen = written if window is None else written & (at >= lengths - window)
    k, v = (pages[table].flatten(1, 2).masked_fill_(~written[..., None, None], 0).transpose(1, 2) for pages in pool)
    return rows_attention(q, k, v, seen, score)


class PageAttention:
    """Attention over pages.

    Args:
        windows: of each layer, in tokens; None where all is read.
        buffers: for where tokens are written and what they read.
        device: of the pages.
        in_place: see `reads_in_place`.
        pages: of each row's table; None: as many as the rows of a step have.
    """

    def __init__(
        self,
        windows: Sequence[int | None],
        buffers: Buffers,
        device: torch.device,
        *,
        in_place: bool,
        pages: int | None = None,
    ) -> None:
        self.windows, self.device, self.in_place = windows, device, in_place
        self._buffers, self._pages = buffers, pages

    def fixed(self, buffers: Buffers, pages: int) -> PageAttention:
        """Return the same attention with buffers and a width of tables of its own."""
        return PageAttention(self.windows, buffers, self.device, in_place=self.in_place, pages=pages)

    def arrange(self, pieces: Sequence[Piece]) -> PageArrangement:
        """Return the arrangement as `Attention` says; every place is a `PageList` of the same pool."""
        decoding = [index for index, piece in enumerate(pieces) if piece.tokens == 1]
        spans = [index for index, piece in enumerate(pieces) if piece.tokens > 1]
        order = [*decoding, *spans]
        ordered = [pieces[index] for index in order]
        slots = [slot for piece in ordered for slot in piece.place.slots(piece.start, piece.end)]
        parts, first = [], 0
        for name, indices in (("decoding", decoding), ("spans", spans)):
            if indices:
                parts.append(self._rows(name, [pieces[index] for index in indices], first))
                first = parts[-1].tokens.stop
        pool = ordered[0].place.pool
        return PageArrangement(order, pool, self._buffers.fill("slots in pages", slots), parts, self)

    def _rows(self, name: str, pieces: Sequence[Piece], first: int) -> _Rows:
        ends = [0, *accumulate(piece.tokens for piece in pieces)]
        pages = self._pages or max(pages_for(piece.end) for piece in pieces)
        table = []
        for piece in pieces:
            numbers = piece.place.numbers[:pages]
            table += [*numbers, *[0] * (pages - len(numbers))]

        def fill(what: str, values: Sequence[int]) -> torch.Tensor:
            return self._buffers.fill(f"{what} of {name}", values, torch.int32)

        return _Rows(
            slice(first, first + ends[-1]),
            pieces,
            max(piece.tokens for piece in pieces),
            fill("ends", ends),
            fill("lengths", [piece.end for piece in pieces]),
            fill("pages", table).view(len(pieces), pages),
        )
