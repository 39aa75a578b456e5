"""Keys and values of the sequences that run: one contiguous extent a sequence, zeroed when it is reserved.

Extents of one size lie side by side in a slab, without gaps, so that the rows of a step are one view of it. Sizes are
powers of two; a sequence that outgrows its extent moves to the next size.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field

import torch

from graft_runtime.adapters.deltas import Prefix
from graft_runtime.runners.decoder.attention import LayerShape
from graft_runtime.runners.decoder.kept_blocks import BLOCK, KeptBlocks, Sides

SMALLEST_EXTENT = 64
"""Tokens."""


@dataclass(eq=False)
class Extent:
    """The place of one sequence. It moves when others leave: read `slab` and `slot` anew for each step."""

    slab: Slab
    slot: int
    known: int = 0

    @property
    def capacity(self) -> int:
        """Return how many tokens the extent has room for."""
        return self.slab.capacity

    @property
    def sides(self) -> Sides:
        """Return keys and values of each layer as they lie now, [heads, capacity, features] each."""
        keys = [tensor[self.slot] for tensor in self.slab.keys]
        return keys, [tensor[self.slot] for tensor in self.slab.values]


@dataclass(eq=False)
class Slab:
    """Extents of one size, on every layer.

    Attributes:
        keys: of each layer, [slots, heads, capacity, key features].
        values: of each layer, [slots, heads, capacity, value features].
    """

    capacity: int
    keys: list[torch.Tensor]
    values: list[torch.Tensor]
    extents: list[Extent] = field(default_factory=list)
    """By slot; slots beyond are free."""

    @property
    def slots(self) -> int:
        return int(self.keys[0].shape[0])

    def resize(self, slots: int) -> None:
        """Change the number of slots and keep the extents, one layer at a time: no more than one layer is held twice.

        Raises:
            torch.OutOfMemoryError: the slab is as it was, as far as there is memory for that: what a part of it grew by
                is what the next step needs.
        """
        before = self.slots
        try:
            self._resize_tensors(slots)
        except torch.OutOfMemoryError:
            with suppress(torch.OutOfMemoryError):
                self._resize_tensors(before)
            raise

    def shrink(self, slots: int) -> None:
        """Give back what is free beyond so many slots, unless there is no memory to move the others."""
        with suppress(torch.OutOfMemoryError):
            self.resize(slots)

    def _resize_tensors(self, slots: int) -> None:
        for tensors in (self.values, self.keys):
            for layer in reversed(range(len(tensors))):
                old = tensors[layer]
                if old.shape[0] != slots:
                    new = old.new_empty(slots, *old.shape[1:])
                    new[: len(self.extents)] = old[: len(self.extents)]
                    tensors[layer] = new

    def take(self) -> Extent:
        """Take a free slot and fill it with zeros: what is masked is still multiplied, and 0 · NaN is NaN."""
        extent = Extent(self, len(self.extents))
        self.extents.append(extent)
        for tensor in (*self.keys, *self.values):
            tensor[extent.slot].zero_()
        return extent

    def free(self, extent: Extent) -> None:
        """Free this extent, and move the last extent into the free place."""
        last = self.extents.pop()
        if last is not extent:
            for tensor in (*self.keys, *self.values):
                tensor[extent.slot] = tensor[last.slot]
            last.slot = extent.slot
            self.extents[extent.slot] = last


class Extents:
    """All extents; see `KeysAndValues`. What it holds never exceeds `tokens`, free slots included.

    Args:
        layers: of the model, in order.
        tokens: that may be held in all.
        longest: tokens of the longest sequence.
        dtype: of keys and values.
        device: of keys and values.
        kept: tokens that are kept for later sequences, beside those of running ones.
    """

    def __init__(
        self,
        layers: Sequence[LayerShape],
        *,
        tokens: int,
        longest: int,
        dtype: torch.dtype,
        device: torch.device,
        kept: int = 0,
    ) -> None:
        self._layers = layers
        self.longest = longest
        self._dtype = dtype
        self._device = device
        self._slabs: dict[int, Slab] = {}
        self._kept = KeptBlocks(layers, tokens=kept, dtype=dtype, device=device) if kept >= BLOCK else None
        self.block = BLOCK if self._kept is not None else 0
        self.tokens = tokens
        """That may be held in all; fewer once the memory had no room for as many."""

    @property
    def held(self) -> int:
        """Return the tokens of all slots, free ones included."""
        return sum(slab.capacity * slab.slots for slab in self._slabs.values())

    @property
    def extents(self) -> int:
        """Return how many extents are reserved."""
        return sum(len(slab.extents) for slab in self._slabs.values())

    @property
    def reserved(self) -> int:
        """Return the tokens of all extents that are reserved."""
        return sum(slab.capacity * len(slab.extents) for slab in self._slabs.values())

    def reserve(self, tokens: int, past: Sequence[bytes] = ()) -> Extent | None:
        """Return an extent for so many tokens or more, zeros but for what is known; None when there is no room."""
        capacity = self._capacity(tokens)
        slab = self._slabs.get(capacity) or self._new_slab(capacity)
        if len(slab.extents) == slab.slots and not self._widen(slab):
            return None
        self._slabs[capacity] = slab
        extent = slab.take()
        if self._kept is not None and past:
            extent.known = self._kept.copy_into(extent.sides, past)
        return extent

    def keep(self, place: Extent, past: Sequence[bytes]) -> None:
        """Copy these blocks, unless they are there."""
        if self._kept is not None:
            self._kept.copy_from(place.sides, past)

    def grow(self, place: Extent, tokens: int, used: int) -> Extent | None:
        """Return a larger extent with the first `used` tokens of this one, which is freed; None without room."""
        larger = self.reserve(tokens)
        if larger is None:
            return None
        for to, source in ((larger.slab.keys, place.slab.keys), (larger.slab.values, place.slab.values)):
            for layer in range(len(self._layers)):
                to[layer][larger.slot, :, :used] = source[layer][place.slot, :, :used]
        self.release(place)
        return larger

    def release(self, place: Extent) -> None:
        """Free the memory of an extent, or keep it for the next extent of this size."""
        slab = place.slab
        slab.free(place)
        if not slab.extents:
            del self._slabs[slab.capacity]
        elif len(slab.extents) * 4 <= slab.slots:
            slab.shrink(len(slab.extents) * 2)

    def fill(self, place: Extent, prefix: Prefix) -> None:
        """Write the first positions of an extent."""
        for layer, (keys, values) in enumerate(zip(prefix.keys, prefix.values, strict=True)):
            place.slab.keys[layer][place.slot, :, : prefix.tokens] = keys
            place.slab.values[layer][place.slot, :, : prefix.tokens] = values

    def beside(self, lengths: Sequence[int]) -> Extents:
        """Return room for sequences of these lengths, beside what is here."""
        return room_for(lengths, self._layers, dtype=self._dtype, device=self._device)

    def _capacity(self, tokens: int) -> int:
        capacity = SMALLEST_EXTENT
        while capacity < tokens:
            capacity *= 2
        return max(tokens, min(capacity, self.longest))

    def _new_slab(self, capacity: int) -> Slab:
        def empty(heads: int, features: int) -> torch.Tensor:
            return torch.empty(0, heads, capacity, features, dtype=self._dtype, device=self._device)

        keys = [empty(layer.heads, layer.key_features) for layer in self._layers]
        values = [empty(layer.heads, layer.value_features) for layer in self._layers]
        return Slab(capacity, keys, values)

    def _widen(self, slab: Slab) -> bool:
        """Make the slots twice as many, or add as many as there is room for."""
        room = (self.tokens - self.held) // slab.capacity
        if room < 1:
            self._trim()
            room = (self.tokens - self.held) // slab.capacity
        if room < 1:
            return False
        try:
            slab.resize(slab.slots + min(room, max(1, slab.slots)))
        except (
            torch.OutOfMemoryError
        ):  # the ledger promised more than there is: who needs it waits, and steps need some
            self.tokens = min(self.tokens, max(self.longest, self.held * 3 // 4))
            return False
        return True

    def _trim(self) -> None:
        for slab in self._slabs.values():
            if slab.slots > len(slab.extents):
                slab.shrink(len(slab.extents))


def room_for(
    lengths: Sequence[int], layers: Sequence[LayerShape], *, dtype: torch.dtype, device: torch.device
) -> Extents:
    """Return extents for sequences of these lengths."""
    tokens = [max(length, SMALLEST_EXTENT) for length in lengths]
    return Extents(layers, tokens=sum(tokens), longest=max(tokens), dtype=dtype, device=device)
