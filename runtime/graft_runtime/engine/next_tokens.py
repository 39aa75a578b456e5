"""What becomes of requests for text once the logits of their next token are there."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from graft_runtime.engine.log_probabilities import log_probabilities
from graft_runtime.engine.penalties import adjusted, adjusts
from graft_runtime.engine.requests import Generation, Result, not_finite
from graft_runtime.engine.sampling import choose, limited
from graft_runtime.messages import Generated, TokenLogprob


def next_tokens(requests: Sequence[Generation], logits: torch.Tensor) -> list[Result]:
    """Choose the next token of each request and append it to the request's own.

    Args:
        requests: in the order of the logits.
        logits: [requests, vocabulary].
    """
    logits = limited(logits, [request.vocabulary for request in requests])
    tokens = _chosen(logits, requests)
    told = _told(logits, requests, tokens)
    return [_result(requests[row], token, told.get(row, [])) for row, token in enumerate(tokens)]


def _chosen(logits: torch.Tensor, requests: Sequence[Generation]) -> list[int | None]:
    """Choose the next token of each request; those that want the logits as they are don't wait for the others."""
    chosen: list[int | None] = [None] * len(requests)
    for wanted in (False, True):
        rows = [row for row, request in enumerate(requests) if adjusts(request) is wanted]
        if not rows:
            continue
        some = [requests[row] for row in rows]
        own = logits if len(rows) == len(requests) else logits[rows]
        tokens = choose(adjusted(own, some) if wanted else own, [request.draws for request in some])
        for row, token in zip(rows, tokens, strict=True):
            chosen[row] = token
    return chosen


def _told(
    logits: torch.Tensor, requests: Sequence[Generation], tokens: Sequence[int | None]
) -> dict[int, list[TokenLogprob]]:
    """Return the log-probabilities of the tokens by row, where they were asked for."""
    rows, chosen, tops = [], [], []
    for row, (request, token) in enumerate(zip(requests, tokens, strict=True)):
        top = request.message.sampling.logprobs
        if top is not None and token is not None:
            rows.append(row)
            chosen.append(token)
            tops.append(top)
    if not rows:
        return {}
    found = log_probabilities(logits if len(rows) == len(requests) else logits[rows], chosen, tops)
    return {row: [one] for row, one in zip(rows, found, strict=True)}


def _result(request: Generation, token: int | None, logprobs: list[TokenLogprob]) -> Result:
    if token is None:
        return not_finite(request)
    known = 0 if request.tokens else request.known
    prompt = [one for _, one in sorted(request.prompt_told.items())] if request.tells_prompt else []
    if token in request.message.stop_tokens:
        return Result(
            request,
            Generated(request.name, [], "stop", logprobs=logprobs, prompt_logprobs=prompt, end=token, known=known),
            ends=True,
        )
    request.tokens.append(token)
    finish = "length" if len(request.tokens) == request.max_tokens else None
    event = Generated(request.name, [token], finish, logprobs=logprobs, prompt_logprobs=prompt, known=known)
    return Result(request, event, ends=finish is not None)
