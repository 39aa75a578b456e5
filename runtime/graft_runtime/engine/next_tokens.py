"""What becomes of requests for text once the logits of their next token are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.engine.requests import Generation, Result
from graft_runtime.engine.sampling import choose, limited
from graft_runtime.errors import ErrorCode
from graft_runtime.messages import EngineFault, Generated


def next_tokens(requests: Sequence[Generation], logits: torch.Tensor) -> list[Result]:
    """Choose the next token of each request and append it to the request's own.

    Args:
        requests: in the order of the logits.
        logits: [requests, vocabulary].
    """
    logits = limited(logits, [request.vocabulary for request in requests])
    tokens = choose(logits, [request.draws for request in requests])
    return [_result(request, token) for request, token in zip(requests, tokens, strict=True)]


def _result(request: Generation, token: int | None) -> Result:
    if token is None:
        return Result(request, request.failed(_not_finite(request)), ends=True)
    if token in request.message.stop_tokens:
        return Result(request, Generated(request.name, [], "stop"), ends=True)
    request.tokens.append(token)
    ends = len(request.tokens) == request.max_tokens
    return Result(request, Generated(request.name, [token], "length" if ends else None), ends=ends)


def _not_finite(request: Generation) -> EngineFault:
    names = ", ".join(served.digest for served in request.message.adapters)
    whose = f"adapter {names} computes" if names else "the base model computes"
    return EngineFault(
        ErrorCode.CORRUPT,
        f"{whose} values that are not finite on this prompt",
        hint="its weights overflow the dtype of the model; use a wider spec.baseModel.dtype, or train it again",
    )
