"""Attention over extents: each row writes its keys and values to its own extent and reads nothing else.

A step is one row of tokens: first those of the sequences that decode, one each and ordered by slab and slot, so that a
slab's rows go through attention in one call; then spans of prompts, one call each.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from graft_runtime.model.buffers import Buffers
from graft_runtime.model.native import Asked, Kept, Native
from graft_runtime.runners.decoder.attention import Piece, Score
from graft_runtime.runners.decoder.extents import Extent, Slab
from graft_runtime.runners.decoder.weighted import rows_attention, seen_of_span, span_attention


@dataclass(frozen=True)
class _Layer:
    """What one layer asks for; `window` is in tokens."""

    index: int
    window: int | None
    score: Score

    def asked(self, features: int) -> Asked:
        """Return the same for what is compiled; `features` are the queries'."""
        scale = features**-0.5 if self.score.scale is None else self.score.scale
        return Asked(self.window, scale, self.score.softcap, self.score.sinks)


@dataclass
class _Reads:
    """The part of an extent that is read, and what of it is hidden."""

    low: int
    high: int
    mask: torch.Tensor | None


@dataclass(eq=False)
class _Decoding:
    """Rows of one slab, one token each."""

    buffers: Buffers
    slab: Slab
    first: int
    """Where they begin in the step."""
    positions: list[int]
    slots: torch.Tensor
    at: torch.Tensor
    native: Native | None
    _reads: dict[int | None, _Reads] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return self.first + len(self.positions)

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Write keys and values, and compute attention: all are [rows, heads, features]."""
        keys, values = self.slab.keys[layer.index], self.slab.values[layer.index]
        if self.native is not None and self.native.takes(q.dtype, q.shape[2], v.shape[2]):
            return self.native.attend(q, k, v, Kept(keys, values, self.slots, self.at), layer.asked(q.shape[2]))
        keys[self.slots, :, self.at], values[self.slots, :, self.at] = k, v
        slots = len(self.slab.extents)
        reads = self._reads.get(layer.window) or self._read(layer.window)
        self._reads[layer.window] = reads
        k, v = keys[:slots, :, reads.low : reads.high], values[:slots, :, reads.low : reads.high]
        if slots != len(self.positions):  # some sequences of the slab are not decoding in this step
            k, v = k[self.slots], v[self.slots]
        return rows_attention(q, k, v, reads.mask, layer.score)

    def _read(self, window: int | None) -> _Reads:
        high = max(self.positions) + 1
        low = 0 if window is None else max(0, min(self.positions) - window + 1)
        even = min(self.positions) + 1 == high
        if even:
            return _Reads(low, high, None)
        index = torch.arange(low, high, device=self.at.device)[None]
        name = f"seen {self.slab.capacity} {window}"
        seen = self.buffers.view(name, len(self.positions), high - low, dtype=torch.bool)
        torch.le(index, self.at[:, None], out=seen)
        if window is not None:
            seen &= index > self.at[:, None] - window
        return _Reads(low, high, seen)


@dataclass(eq=False)
class _Span:
    """Tokens of one prompt."""

    extent: Extent
    piece: Piece
    first: int
    device: torch.device
    _reads: dict[int | None, _Reads] = field(default_factory=dict)

    @property
    def last(self) -> int:
        return self.first + self.piece.tokens

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: _Layer) -> torch.Tensor:
        """Write keys and values, and compute attention: all are [tokens, heads, features]."""
        self._write(k, v, layer.index)
        reads = self._reads.get(layer.window) or self._read(layer.window)
        self._reads[layer.window] = reads
        return span_attention(q, *self._stored(layer.index, reads.low), reads.mask, layer.score)

    def _stored(self, layer: int, low: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return keys and values from this token on, [1, heads, tokens, features] each."""
        slab, slot = self.extent.slab, self.extent.slot
        keys, values = slab.keys[layer], slab.values[layer]
        return keys[slot : slot + 1, :, low : self.piece.end], values[slot : slot + 1, :, low : self.piece.end]

    def _write(self, k: torch.Tensor, v: torch.Tensor, layer: int) -> None:
        slab, slot = self.extent.slab, self.extent.slot
        slab.keys[layer][slot, :, self.piece.start : self.piece.end] = k.transpose(0, 1)
        slab.values[layer][slot, :, self.piece.start : self.piece.end] = v.transpose(0, 1)

    def _read(self, window: int | None) -> _Reads:
        low, seen = seen_of_span(self.piece.start, self.piece.end, window, self.device)
        return _Reads(low, self.piece.end, seen)


class ExtentArrangement:
    """A step over extents; see `Arrangement`."""

    def __init__(self, order: Sequence[int], parts: Sequence[_Decoding | _Span], windows: Sequence[int | None]) -> None:
        self.order = order
        self._parts, self._windows = parts, windows

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, score: Score) -> torch.Tensor:
        """Compute attention as `Arrangement` says."""
        made = []
        for part in self._parts:
            rows = slice(part.first, part.last)
            made.append(part.attend(q[rows], k[rows], v[rows], _Layer(layer, self._windows[layer], score)))
        return made[0] if len(made) == 1 else torch.cat(made)


class ExtentAttention:
    """Attention over extents.

    Args:
        windows: of each layer, in tokens; None where all is read.
        buffers: for where tokens are written and what they read.
        device: of the extents.
        native: computes rows that decode where it can.
    """

    def __init__(
        self, windows: Sequence[int | None], buffers: Buffers, device: torch.device, native: Native | None = None
    ) -> None:
        self._windows, self._buffers, self._device, self._native = windows, buffers, device, native

    def arrange(self, pieces: Sequence[Piece]) -> ExtentArrangement:
        """Return the arrangement as `Attention` says; every place is an `Extent`."""
        decoding = [index for index, piece in enumerate(pieces) if piece.tokens == 1]
        decoding.sort(key=lambda index: (pieces[index].place.capacity, pieces[index].place.slot))
        spans = [index for index, piece in enumerate(pieces) if piece.tokens > 1]
        parts: list[_Decoding | _Span] = []
        slots = self._buffers.fill("slots of extents", [pieces[index].place.slot for index in decoding])
        at = self._buffers.fill("positions in extents", [pieces[index].start for index in decoding])
        slabs: dict[int, list[Piece]] = {}
        for index in decoding:
            slabs.setdefault(pieces[index].place.capacity, []).append(pieces[index])
        tokens = 0
        for same in slabs.values():
            rows = slice(tokens, tokens + len(same))
            positions = [piece.start for piece in same]
            parts.append(
                _Decoding(self._buffers, same[0].place.slab, tokens, positions, slots[rows], at[rows], self._native)
            )
            tokens += len(same)
        for index in spans:
            parts.append(_Span(pieces[index].place, pieces[index], tokens, self._device))
            tokens += pieces[index].tokens
        return ExtentArrangement([*decoding, *spans], parts, self._windows)
