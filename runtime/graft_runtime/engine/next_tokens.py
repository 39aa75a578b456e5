"""What becomes of requests for text once the logits of their next token are there."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

import torch

from graft_runtime.engine.log_probabilities import log_probabilities
from graft_runtime.engine.penalties import adjusted, adjusts
from graft_runtime.engine.requests import Generation, Result, failure, not_finite
from graft_runtime.engine.sampling import choose, limited
from graft_runtime.errors import GraftError
from graft_runtime.messages import EngineFault, Generated, TokenLogprob


def next_tokens(requests: Sequence[Generation], logits: torch.Tensor) -> list[Result]:
    """Choose the next token of each request and append it to the request's own.

    Args:
        requests: in the order of the logits.
        logits: [requests, vocabulary].
    """
    closed = {row: result for row, request in enumerate(requests) if (result := _closed(request)) is not None}
    if closed:
        rows = [row for row in range(len(requests)) if row not in closed]
        opened = _next_of([requests[row] for row in rows], logits[rows])
        return [each for _, each in sorted([*closed.items(), *zip(rows, opened, strict=True)], key=itemgetter(0))]
    return _next_of(requests, logits)


def _closed(request: Generation) -> Result | None:
    """Return the end of a request whose grammar lets nothing follow, or can't be followed any further."""
    if request.constraint is None:
        return None
    try:
        over = request.constraint.mask().over
    except GraftError as error:
        return Result(request, failure(request.message, EngineFault.of(error)), ends=True)
    return _stopped(request, [], None) if over else None


def _next_of(requests: Sequence[Generation], logits: torch.Tensor) -> list[Result]:
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
    if token in request.message.stop_tokens:
        return _stopped(request, logprobs, token)
    known, prompt = _known(request), _told_of_prompt(request)
    request.tokens.append(token)
    if request.constraint is not None:
        request.constraint.advance(token)
    finish = "length" if len(request.tokens) == request.max_tokens else None
    event = Generated(request.name, [token], finish, logprobs=logprobs, prompt_logprobs=prompt, known=known)
    return Result(request, event, ends=finish is not None)


def _stopped(request: Generation, logprobs: list[TokenLogprob], end: int | None) -> Result:
    """Return the end of a request before its limit.

    Args:
        request: which ends.
        logprobs: of the stop token, where they are asked for.
        end: the stop token; None: its grammar ends.
    """
    prompt = _told_of_prompt(request)
    event = Generated(
        request.name, [], "stop", logprobs=logprobs, prompt_logprobs=prompt, end=end, known=_known(request)
    )
    return Result(request, event, ends=True)


def _known(request: Generation) -> int:
    """Return how many tokens of the prompt were known, for its first event."""
    return 0 if request.tokens else request.known


def _told_of_prompt(request: Generation) -> list[TokenLogprob]:
    return [one for _, one in sorted(request.prompt_told.items())] if request.tells_prompt else []
