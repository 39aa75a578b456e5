"""Log-probabilities of prompts, from the logits after each of their tokens."""

from __future__ import annotations

import torch

from graft_runtime.engine.log_probabilities import log_probabilities
from graft_runtime.engine.requests import Generation
from graft_runtime.engine.sampling import limited


def tell_prompt(request: Generation, start: int, logits: torch.Tensor) -> None:
    """Keep what the model gives to the tokens of a prompt that come after these places.

    Args:
        request: whose prompt it is.
        start: the first place, virtual tokens included.
        logits: after each place, [places, vocabulary].
    """
    prompt = request.message.prompt
    first = start - request.virtual
    followed = [place for place in range(first, first + len(logits)) if 0 <= place < len(prompt) - 1]
    if not followed:
        return
    rows = limited(logits[followed[0] - first : followed[-1] - first + 1], [request.vocabulary] * len(followed))
    tops = [request.message.sampling.logprobs or 0] * len(followed)
    told = log_probabilities(rows, [prompt[place + 1] for place in followed], tops)
    request.prompt_told.update(zip(followed, told, strict=True))
