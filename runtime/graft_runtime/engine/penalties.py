"""Logits as a request wants them before a token is chosen: biases, penalties, no end too early, and a grammar.

In the order of Transformers' processors: biases, then the penalty of repetition over prompt and answer, then those of
presence and frequency over the answer, then tokens that may not end it yet, then those that its
grammar has no place for.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from graft_runtime.engine.columns import columns
from graft_runtime.engine.constraints import forbid
from graft_runtime.engine.requests import Generation

_FORBIDDEN = float("-inf")


def adjusts(request: Generation) -> bool:
    """Tell whether a request wants its next logits other than the model has them."""
    sampling = request.message.sampling
    formed = request.seen is not None or request.constraint is not None
    return formed or bool(sampling.logit_bias) or len(request.tokens) < sampling.min_tokens


def adjusted(logits: torch.Tensor, requests: Sequence[Generation]) -> torch.Tensor:
    """Return the logits as these requests want them, in float32.

    Args:
        logits: [rows, vocabulary], which are left as they are.
        requests: of the rows.
    """
    logits = logits.to(torch.float32, copy=True)
    _add_biases(logits, requests)
    _penalise(logits, requests)
    early = [
        (row, token)
        for row, request in enumerate(requests)
        if len(request.tokens) < request.message.sampling.min_tokens
        for token in request.message.stop_tokens
        if token < logits.shape[1]
    ]
    if early:
        logits[columns(logits.device, *zip(*early, strict=True))[:2].long().unbind()] = _FORBIDDEN
    masks = [(row, request.constraint.mask(), request) for row, request in enumerate(requests) if request.constraint]
    if masks:
        width = logits.shape[1]
        forbid(logits, [(row, mask.allowing(one.message.stop_tokens, width)) for row, mask, one in masks])
    return logits


def _add_biases(logits: torch.Tensor, requests: Sequence[Generation]) -> None:
    biases = [
        (row, token, bias)
        for row, request in enumerate(requests)
        for token, bias in request.message.sampling.logit_bias.items()
    ]
    if biases:
        rows, tokens, values = columns(logits.device, *zip(*biases, strict=True))
        logits.index_put_((rows.long(), tokens.long()), values.float(), accumulate=True)


def _penalise(logits: torch.Tensor, requests: Sequence[Generation]) -> None:
    rows = [(row, request) for row, request in enumerate(requests) if request.seen is not None]
    if not rows:
        return
    parts = []
    for row, request in rows:
        assert request.seen is not None
        tokens, counts = request.seen.catch_up(request.tokens)
        sampling = request.message.sampling
        repetition = np.full(len(tokens), sampling.repetition_penalty)
        further = counts * sampling.frequency_penalty + (counts > 0) * sampling.presence_penalty
        parts.append(np.stack([np.full(len(tokens), float(row)), tokens, repetition, further]))
    at, tokens, repetition, further = columns(logits.device, *np.concatenate(parts, axis=1))
    index = (at.long(), tokens.long())
    values = logits[index]
    repeated = torch.where(values < 0, values * repetition.float(), values / repetition.float())
    logits.index_put_(index, repeated - further.float())
