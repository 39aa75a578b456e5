"""What the engine may spend, where that is nothing for users to set."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from graft_runtime.model.bank import WIDEST


@dataclass(frozen=True)
class Budgets:
    """Limits of the engine, and its clock.

    Attributes:
        bank_columns: of the active bank, unless a single adapter may need more.
        pages: whether a decoder's keys and values lie in pages, and steps of rows that decode are static; None: what
            suits the device.
        prompt_tokens: of all prompts in one step of the decoder; None: what suits the device.
        device_bytes: of mounted adapters; None: what the ledger finds.
        host_bytes: of adapters that have left the device; None: what the ledger finds.
        failed_steps: in a row, and the engine gives up: a fresh process may do better.
        clock: seconds.
    """

    bank_columns: int = WIDEST
    pages: bool | None = None
    prompt_tokens: int | None = None
    device_bytes: int | None = None
    host_bytes: int | None = None
    failed_steps: int = 3
    clock: Callable[[], float] = time.perf_counter


PLENTY = Budgets()
"""Of an engine that serves."""
