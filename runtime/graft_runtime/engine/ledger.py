"""What the memory of the device is spent on, fixed at boot."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.memory import free_memory
from graft_runtime.runners.decoder.attention import LayerShape

logger = logging.getLogger(__name__)

CPU_CAP = 4 << 30
"""Bytes of keys and values on a CPU, or a quarter of what is free if that is less."""
ACCELERATOR_SHARE = 0.9
"""Of what is free: the rest is for activations."""
KEPT_SHARE = 4
"""On a CPU: this fraction of keys and values is for those that are kept for later requests."""
MOVING = 2
"""A sequence that grows holds its old extent and the new one for a moment; one in pages does not."""
GRAPHS_SHARE, GRAPHS_CAP = 16, 1 << 30
"""This fraction of what is free on an accelerator is for CUDA graphs, and no more bytes than that."""
DEVICE_SHARE = 4
"""This fraction of what is free is for mounted adapters; on an accelerator, no less than the bank at its widest."""
HOST_SHARE = 8
"""On a CPU, where keys and values get a quarter: this fraction of what is free is for adapters that are not mounted."""
HOST_SHARE_BESIDE_ACCELERATOR = 2
"""With an accelerator the host's memory has little else to do."""
_MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class Ledger:
    """Bytes, but for `tokens`."""

    free: int
    bank: int
    """The active bank at its widest."""
    packs: int
    """Mounted adapters, a guess: as many columns as the bank has at its widest."""
    graphs: int
    keys_and_values: int
    tokens: int
    """That fit into `keys_and_values`."""
    kept: int
    """Tokens that may be kept for later requests: on a CPU beside `tokens`, on an accelerator among them."""

    def longest(self, context_length: int, *, moves: bool) -> int:
        """Return the tokens of the longest sequence that can run: the context, or what fits.

        Args:
            context_length: of the model.
            moves: whether a sequence that grows moves.

        Raises:
            GraftError: NoCapacity.
        """
        longest = min(context_length, self.tokens // MOVING if moves else self.tokens)
        if longest < 2:
            raise GraftError(
                ErrorCode.NO_CAPACITY,
                f"{self.free // _MEBIBYTE} MiB of free memory have no room for keys and values",
                hint="give the pod more memory",
            )
        return longest


def check_room(name: str, weights: int, device: torch.device) -> None:
    """Check that the weights of a base model fit into the free memory, before any is loaded.

    Args:
        name: how errors call the base model.
        weights: bytes.
        device: whose memory it is; weights come to an accelerator through the host's.

    Raises:
        GraftError: NoCapacity.
    """
    free, where = min((_free(device), "memory"), (free_memory(), "the host's memory"))
    if weights > free:
        raise GraftError(
            ErrorCode.NO_CAPACITY,
            f"base model `{name}` needs {_mebibytes(weights)} MiB for its weights alone; "
            f"{_mebibytes(free)} MiB of {where} are free",
            hint="give the pod more memory (resources of its container in spec.podTemplate), or serve a smaller model",
            field="spec.baseModel.uri",
        )


def check_adapter_room(name: str, needed: int, device: torch.device) -> None:
    """Check that an adapter's values fit into the free memory, before any is read. Raises GraftError: NoCapacity."""
    if needed > (free := _free(device)):
        raise adapter_too_large(name, needed, free)


def adapter_too_large(name: str, needed: int, left: int) -> GraftError:
    """Return the fault of an adapter for which there are too few bytes."""
    return GraftError(
        ErrorCode.NO_CAPACITY,
        f"adapter `{name}` needs {_mebibytes(needed)} MiB of the memory for mounted adapters; {_mebibytes(left)} MiB"
        " of it are left",
        hint="mount or pin fewer adapters, give the pod more memory, or train the adapter on fewer modules",
    )


def _free(device: torch.device) -> int:
    return free_memory() if device.type == "cpu" else torch.cuda.mem_get_info(device)[0]


def _mebibytes(size: int) -> int:
    return size // _MEBIBYTE


def open_ledger(
    layers: Sequence[LayerShape], *, bank: int, dtype: torch.dtype, device: torch.device, keeps: bool
) -> Ledger:
    """Share out the memory that is free once the base model is loaded, and log the shares.

    Args:
        layers: what attention keeps of a token.
        bank: bytes of the active bank at its widest.
        dtype: of keys and values.
        device: whose memory it is.
        keeps: whether keys and values are kept for later requests.
    """
    token = sum(layer.features for layer in layers) * dtype.itemsize
    if device.type == "cpu":
        free, packs, graphs = _free(device), 0, 0
        room = min(CPU_CAP, free // 4)
    else:
        free, packs = _free(device), bank
        graphs = min(free // GRAPHS_SHARE, GRAPHS_CAP)
        room = int(free * ACCELERATOR_SHARE) - bank - packs - graphs
    tokens = max(0, room) // token
    kept = 0 if not keeps else tokens // KEPT_SHARE if device.type == "cpu" else tokens
    tokens -= kept if device.type == "cpu" else 0
    ledger = Ledger(free, bank, packs, graphs, room, tokens, kept)
    logger.info(
        "memory: %d MiB free; active bank up to %d MiB, packs %d MiB, graphs up to %d MiB, "
        "keys and values up to %d MiB: %d tokens of %d bytes that run, up to %d kept for later",
        free // _MEBIBYTE,
        bank // _MEBIBYTE,
        packs // _MEBIBYTE,
        graphs // _MEBIBYTE,
        room // _MEBIBYTE,
        ledger.tokens,
        token,
        kept,
    )
    return ledger


def room_on_device(bank: int, device: torch.device) -> int:
    """Return, and log, the bytes of the device's memory for mounted adapters.

    Args:
        bank: bytes of the active bank at its widest.
        device: whose memory it is.
    """
    free = _free(device)
    room = free // DEVICE_SHARE if device.type == "cpu" else max(bank, free // DEVICE_SHARE)
    logger.info("memory: %d MiB free; mounted adapters up to %d MiB", _mebibytes(free), _mebibytes(room))
    return room


def room_in_host(device: torch.device) -> int:
    """Return, and log, the bytes of host memory for adapters that leave the device, compiled as they are."""
    free = free_memory()
    room = free // (HOST_SHARE if device.type == "cpu" else HOST_SHARE_BESIDE_ACCELERATOR)
    logger.info(
        "memory of the host: %d MiB free; adapters that are not mounted up to %d MiB",
        free // _MEBIBYTE,
        room // _MEBIBYTE,
    )
    return room
