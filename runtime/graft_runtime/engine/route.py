"""Which runner serves a loaded model."""

from __future__ import annotations

import logging

import torch

from graft_runtime.contract.tasks import Task
from graft_runtime.engine.ledger import open_ledger
from graft_runtime.model.bank import WIDEST, Bank
from graft_runtime.model.buffers import Buffers
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import BaseModel
from graft_runtime.runners.decoder.extents import Extents
from graft_runtime.runners.decoder.over_extents import ExtentAttention
from graft_runtime.runners.decoder.probe import RefusedError, probe
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.encoder import EncoderRunner
from graft_runtime.runners.padded import PaddedRunner
from graft_runtime.runners.runner import Runner
from graft_runtime.runners.seq2seq import Seq2SeqRunner

logger = logging.getLogger(__name__)


def choose_runner(base: BaseModel, *, max_rank: int, bank_columns: int = WIDEST) -> Runner:
    """Choose the runner by the task.

    For a causal language model that is the decoder runner where the probe lets it, else the padded one, and the log
    says why.

    Args:
        base: the model.
        max_rank: of one adapter.
        bank_columns: see `Bank`.

    Raises:
        GraftError: NotAModel when no runner can serve it, NoCapacity when the memory has no room for a request.
    """
    bank = Bank(base.layout.linear, max_rank=max_rank, dtype=base.dtype, device=base.device, columns=bank_columns)
    modules = AdapterModules(base.model, bank)
    if base.task is Task.SEQ_2_SEQ_LM:
        return Seq2SeqRunner(base, modules)
    if not base.task.generates:
        return EncoderRunner(base, modules)
    try:
        with torch.inference_mode():
            family = probe(base, modules)
    except RefusedError as refused:
        logger.warning("base model `%s` is served by the padded runner: %s", base.name, refused)
        return PaddedRunner(base, modules)
    ledger = open_ledger(family.layers, bank=bank.bytes_at_most, dtype=base.dtype, device=base.device)
    kv = Extents(
        family.layers,
        tokens=ledger.tokens,
        longest=ledger.longest(base.context_length),
        dtype=base.dtype,
        device=base.device,
    )
    logger.info("base model `%s` is served by the decoder runner", base.name)
    attention = ExtentAttention(family.windows, Buffers(base.device), base.device)
    return DecoderRunner(base, modules, kv, attention)
