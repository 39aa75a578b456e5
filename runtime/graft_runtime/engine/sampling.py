"""Chooses the next token of each row. What a row draws depends on its own seed and logits, never on its neighbours."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from dataclasses import dataclass

import torch

from graft_runtime.messages import Sampling

CANDIDATES = 1024
"""Tokens that are sorted at first: vocabularies go to 262,144, and few draws fall outside the best of them."""
SEED_BITS = 63
LEAST_TEMPERATURE = 1e-30
"""Greedy all the same, and not yet zero in float32."""


class Draws:
    """The random numbers of one request: one a token, in order, from its own generator."""

    def __init__(self, sampling: Sampling) -> None:
        self.sampling = sampling
        self._generator: torch.Generator | None = None
        if sampling.temperature > 0:
            seed = sampling.seed if sampling.seed is not None else secrets.randbits(SEED_BITS)
            self._generator = torch.Generator().manual_seed(seed % (1 << SEED_BITS))

    def next(self) -> float:
        """Return the next random number, in [0, 1)."""
        return float(torch.rand((), generator=self._generator, dtype=torch.float64))


@dataclass(frozen=True)
class _Rows:
    """The sampling values of several rows, each [rows, 1]."""

    top_p: torch.Tensor
    top_k: torch.Tensor
    draw: torch.Tensor

    def of(self, rows: torch.Tensor) -> _Rows:
        return _Rows(self.top_p[rows], self.top_k[rows], self.draw[rows])


def limited(logits: torch.Tensor, vocabularies: Sequence[int]) -> torch.Tensor:
    """Return the logits with -inf for tokens that a row does not know: another row's vocabulary is larger, or padded.

    Whatever the model did to its head's output, a softcap say, would have made numbers of an earlier -inf.

    Args:
        logits: [rows, vocabulary].
        vocabularies: of each row, in tokens.
    """
    widest = logits.shape[-1]
    if all(size >= widest for size in vocabularies):
        return logits
    sizes = torch.tensor(vocabularies, device=logits.device)[:, None]
    return logits.masked_fill(torch.arange(widest, device=logits.device)[None] >= sizes, float("-inf"))


def choose(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int | None]:
    """Choose the next token of each row; None where the row's logits are not finite, which is that row's fault alone.

    Temperature first, then top-k, then top-p over what is left of it, as in Transformers.

    Args:
        logits: [rows, vocabulary].
        draws: of each row.
    """
    best, greedy = logits.max(dim=-1)  # NaN wins a maximum
    chosen: list[int | None] = [
        token if finite else None for token, finite in zip(greedy.tolist(), torch.isfinite(best).tolist(), strict=True)
    ]
    sampled = [row for row, token in enumerate(chosen) if token is not None and draws[row].sampling.temperature > 0]
    if sampled:
        tokens = _sample(logits[sampled].float(), [draws[row] for row in sampled])
        for row, token in zip(sampled, tokens, strict=True):
            chosen[row] = token
    return chosen


def _sample(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int]:
    def column(values: list[float]) -> torch.Tensor:
        return torch.tensor(values, dtype=torch.float64, device=logits.device)[:, None]

    vocabulary = logits.shape[-1]
    samplings = [draw.sampling for draw in draws]
    rows = _Rows(
        top_p=column([sampling.top_p for sampling in samplings]),
        top_k=column([min(sampling.top_k or vocabulary, vocabulary) for sampling in samplings]),
        draw=column([draw.next() for draw in draws]),
    )
    # The best logit is taken off before the division: a tiny temperature must not overflow.
    best = logits.max(dim=-1, keepdim=True).values
    temperature = column([max(sampling.temperature, LEAST_TEMPERATURE) for sampling in samplings]).to(logits.dtype)
    scaled = (logits - best) / temperature
    probabilities = torch.softmax(scaled, dim=-1)
    tokens, sure = _draw(probabilities, rows, min(CANDIDATES, vocabulary))
    if not bool(sure.all()):
        unsure = (~sure).nonzero()[:, 0]
        tokens[unsure], _ = _draw(probabilities[unsure], rows.of(unsure), vocabulary)
    return tokens.tolist()


def _draw(probabilities: torch.Tensor, rows: _Rows, candidates: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw each row's token among the row's `candidates` likeliest.

    Returns:
        The tokens [rows], and whether the whole vocabulary would have given the same [rows].
    """
    vocabulary = probabilities.shape[-1]
    likely, tokens = probabilities.topk(candidates, dim=-1)
    likely = likely.double()
    in_top_k = torch.arange(candidates, device=likely.device)[None] < rows.top_k
    limited = rows.top_k <= candidates
    likely = likely * in_top_k
    likely = likely / torch.where(limited, likely.sum(-1, keepdim=True), 1.0)
    cumulated = likely.cumsum(-1)
    in_top_p = cumulated - likely < rows.top_p  # the first always is: top_p > 0
    kept = likely * in_top_p
    ends_here = limited | (cumulated[:, -1:] >= rows.top_p)
    target = rows.draw * torch.where(ends_here, kept.sum(-1, keepdim=True), 1.0)
    reached = kept.cumsum(-1) > target
    found = reached.any(-1, keepdim=True)
    last = in_top_p.logical_and(in_top_k).sum(-1, keepdim=True) - 1
    index = torch.where(found, reached.int().argmax(-1, keepdim=True), last)
    # Beyond the candidates may lie a part of the mass that top-k or top-p share out: only then the rest matters.
    unlimited = rows.top_k >= vocabulary
    sure = limited | (unlimited & (ends_here | (found & (rows.top_p >= 1))))
    return tokens.gather(-1, index)[:, 0], sure[:, 0] | (candidates == vocabulary)
