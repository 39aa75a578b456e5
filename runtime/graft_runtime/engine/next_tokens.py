"""What becomes of requests for text once the logits of their next token are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.engine.requests import Generation, Result, not_finite
from graft_runtime.engine.sampling import choose, limited
from graft_runtime.messages import Generated


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
        return not_finite(request)
    known = 0 if request.tokens else request.known
    if token in request.message.stop_tokens:
        return Result(request, Generated(request.name, [], "stop", known=known), ends=True)
    request.tokens.append(token)
    ends = len(request.tokens) == request.max_tokens
    return Result(request, Generated(request.name, [token], "length" if ends else None, known=known), ends=ends)
