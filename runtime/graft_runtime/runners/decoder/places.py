"""Which keys and values, and which attention over them, a model gets on its device."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from graft_runtime.model.buffers import Buffers
from graft_runtime.model.native import Native
from graft_runtime.runners.decoder.attention import Attention, Family, KeysAndValues
from graft_runtime.runners.decoder.extents import Extents
from graft_runtime.runners.decoder.over_extents import ExtentAttention
from graft_runtime.runners.decoder.over_pages import PageAttention, reads_in_place
from graft_runtime.runners.decoder.pages import Pages


@dataclass(frozen=True)
class Places:
    """Keys and values, and attention over them."""

    kv: KeysAndValues
    attention: Attention


def pages_suit(device: torch.device) -> bool:
    """Tell whether keys and values lie in pages: on a GPU. On a CPU, attention over extents is faster."""
    return device.type != "cpu"


def open_places(
    family: Family,
    *,
    pages: bool,
    tokens: int,
    longest: int,
    dtype: torch.dtype,
    device: torch.device,
    kept: int = 0,
    native: Native | None = None,
) -> Places:
    """Return places for sequences of so many tokens in all, in pages or in extents.

    Args:
        family: whose keys and values they are.
        pages: or else extents.
        tokens: of all sequences.
        longest: tokens of the longest sequence.
        dtype: of keys and values.
        device: of keys and values.
        kept: tokens that extents keep for later sequences, beside those of running ones; pages keep what lies in them,
            if any is to be kept.
        native: computes attention over extents where it can.
    """
    if pages:
        attention = PageAttention(
            family.windows, Buffers(device), device, in_place=reads_in_place(family, dtype, device)
        )
        pool = Pages(family.layers, tokens=tokens, longest=longest, dtype=dtype, device=device, keeps=kept > 0)
        return Places(pool, attention)
    extents = Extents(family.layers, tokens=tokens, longest=longest, dtype=dtype, device=device, kept=kept)
    return Places(extents, ExtentAttention(family.windows, Buffers(device), device, native))
