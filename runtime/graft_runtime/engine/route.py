"""Which runner serves a loaded model."""

from __future__ import annotations

import logging

import torch

from graft_runtime.contract.config import EngineConfig
from graft_runtime.contract.tasks import Task
from graft_runtime.engine.budgets import PLENTY, Budgets
from graft_runtime.engine.ledger import open_ledger
from graft_runtime.engine.packing import pack_weights
from graft_runtime.model.bank import Bank
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.model.native import compiled
from graft_runtime.runners.decoder.pages import PAGE, pages_for
from graft_runtime.runners.decoder.places import open_places, pages_suit
from graft_runtime.runners.decoder.probe import RefusedError, probe
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.decoder.static import static_rooms
from graft_runtime.runners.encoder import EncoderRunner
from graft_runtime.runners.padded import PaddedRunner
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.seq2seq import Seq2SeqRunner

logger = logging.getLogger(__name__)


def choose_runner(base: BaseModel, limits: EngineConfig, budgets: Budgets = PLENTY) -> Runner:
    """Choose the runner by the task.

    For a causal language model that is the decoder runner where the probe lets it, else the padded one, and the log
    says why.

    Args:
        base: the model.
        limits: of the engine.
        budgets: likewise.

    Raises:
        GraftError: NotAModel when no runner can serve it, NoCapacity when the memory has no room for a request.
    """
    bank = Bank(
        base.layout.linear,
        max_rank=limits.max_rank,
        dtype=base.dtype,
        device=base.device,
        columns=budgets.bank_columns,
    )
    modules = AdapterModules(base.model, bank)
    if base.task is Task.SEQ_2_SEQ_LM:
        return Seq2SeqRunner(base, modules)
    if not base.task.generates:
        return EncoderRunner(base, modules)
    native = compiled() if limits.compile and base.device.type == "cpu" else None
    pages = pages_suit(base.device) if budgets.pages is None else budgets.pages
    try:
        with torch.inference_mode():
            family = probe(base, modules, pages=pages, native=native)
    except RefusedError as refused:
        logger.warning("base model `%s` is served by the padded runner: %s", base.name, refused)
        return PaddedRunner(base, modules)
    pack_weights(base)
    ledger = open_ledger(
        family.layers,
        bank=bank.bytes_at_most,
        dtype=base.dtype,
        device=base.device,
        keeps=limits.prefix_cache,
    )
    longest = ledger.longest(base.context_length, moves=not pages)
    most = limits.max_sequences * pages_for(longest) * PAGE  # pages are taken at once: no more than can be in use
    places = open_places(
        family,
        pages=pages,
        tokens=min(ledger.tokens, most) if pages else ledger.tokens,
        longest=longest,
        dtype=base.dtype,
        device=base.device,
        kept=ledger.kept,
        native=native,
    )
    logger.info("base model `%s` is served by the decoder runner", base.name)
    # Products of bitsandbytes wait for the device, which no graph can hold.
    static = None if base.quantization else static_rooms(places, bank, limits.max_sequences)
    runner = DecoderRunner(base, modules, places, static, ledger.graphs)
    runner.warm()
    return runner
