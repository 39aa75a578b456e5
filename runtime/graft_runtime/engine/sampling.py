"""Chooses the next token of each row. What a row draws depends on its own seed and logits, never on its neighbours."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from graft_runtime.engine.blocks import Blocks, weight
from graft_runtime.engine.columns import columns
from graft_runtime.messages import Sampling

CANDIDATES = 128
"""Tokens that top-k and top-p choose from at first: few draws of theirs need more."""
MORE_CANDIDATES = 16
"""Times as many, while what a row draws may lie beyond them."""
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
    (sizes,) = columns(logits.device, vocabularies)[..., None].unbind()
    return logits.masked_fill(torch.arange(widest, device=logits.device)[None] >= sizes, float("-inf"))


def choose(logits: torch.Tensor, draws: Sequence[Draws]) -> list[int | None]:
    """Choose the next token of each row; None where the row's logits are not finite, which is that row's fault alone.

    Temperature first, then top-k, then top-p over what is left of it, then min-p, as in Transformers.

    Args:
        logits: [rows, vocabulary].
        draws: of each row; none in a step of spans that end no prompt.
    """
    if not draws:
        return []
    blocks = Blocks(logits)
    best, tokens = blocks.best()
    for way in (_from_all, _from_few, _from_many):
        rows = [row for row, draw in enumerate(draws) if _way_of(draw.sampling, logits.shape[1]) is way]
        if rows:
            index, drawing = _drawing(blocks, best, rows, [draws[row] for row in rows])
            tokens[index] = way(drawing)
    chosen = torch.where(best.isfinite(), tokens, -1)[:, 0].tolist()  # the only copy to the host
    return [token if token >= 0 else None for token in chosen]


@dataclass(frozen=True)
class _Drawing:
    """Rows that draw: their logits, the best of them and the sampling values, [rows, 1] each."""

    blocks: Blocks
    best: torch.Tensor
    temperature: torch.Tensor
    top_p: torch.Tensor
    top_k: torch.Tensor
    min_p: torch.Tensor
    draw: torch.Tensor

    def weight(self, logits: torch.Tensor) -> torch.Tensor:
        """Return what tokens with these logits weigh, [rows, n], float64."""
        return weight(logits, self.best, self.temperature).double()

    def of(self, rows: torch.Tensor) -> _Drawing:
        """Return some of the rows."""
        values = (self.best, self.temperature, self.top_p, self.top_k, self.min_p, self.draw)
        return _Drawing(self.blocks.of(rows), *(value[rows] for value in values))


def _drawing(
    blocks: Blocks, best: torch.Tensor, rows: Sequence[int], draws: Sequence[Draws]
) -> tuple[torch.Tensor, _Drawing]:
    """Return the index of these rows, and what they draw from."""
    samplings = [draw.sampling for draw in draws]
    at, temperature, top_p, top_k, min_p, draw = columns(
        best.device,
        rows,
        [max(sampling.temperature, LEAST_TEMPERATURE) for sampling in samplings],
        [sampling.top_p for sampling in samplings],
        [min(sampling.top_k or blocks.vocabulary, blocks.vocabulary) for sampling in samplings],
        [sampling.min_p for sampling in samplings],
        [draw.next() for draw in draws],
    )[..., None].unbind()
    index = at[:, 0].long()
    mine = blocks if len(rows) == best.shape[0] else blocks.of(index)
    return index, _Drawing(mine, best[index], temperature.float(), top_p, top_k, min_p, draw)


def _way_of(sampling: Sampling, vocabulary: int) -> Callable[[_Drawing], torch.Tensor] | None:
    """Return what draws a token with these values; None: the best token is taken."""
    if not sampling.temperature:
        return None
    top_k = sampling.top_k or vocabulary
    if top_k <= CANDIDATES:
        return _from_few
    return _from_many if sampling.top_p < 1 or sampling.min_p > 0 or top_k < vocabulary else _from_all


def _from_all(rows: _Drawing) -> torch.Tensor:
    """Draw from the whole vocabulary, in the order of the tokens: first the block, then the token in the block."""
    block, rest = _drawn(rows.blocks.weights(rows.best, rows.temperature), rows.draw)
    logits, tokens = rows.blocks.members(block)
    index, _ = _drawn(rows.weight(logits), rest)
    return tokens.gather(1, index)


def _from_few(rows: _Drawing) -> torch.Tensor:
    """Draw where top-k leaves few tokens, in the order of their logits."""
    return _from_likeliest(rows, CANDIDATES, None)[0]


def _from_many(rows: _Drawing) -> torch.Tensor:
    """Draw where top-k, top-p and min-p may leave any number of tokens, in the order of their logits."""
    total = rows.blocks.weights(rows.best, rows.temperature).sum(-1, keepdim=True)
    if rows.draw.is_cuda:  # which rows need more than a few is not asked: the host would have to wait for the answer
        return _from_likeliest(rows, rows.blocks.vocabulary, total)[0]
    candidates = CANDIDATES
    tokens, sure = _from_likeliest(rows, candidates, total)
    while not bool(sure.all()):
        candidates *= MORE_CANDIDATES
        unsure = (~sure[:, 0]).nonzero()[:, 0]
        tokens[unsure], sure[unsure] = _from_likeliest(rows.of(unsure), candidates, total[unsure])
    return tokens


def _from_likeliest(rows: _Drawing, candidates: int, total: torch.Tensor | None) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw each row's token among the row's `candidates` likeliest.

    Args:
        rows: which draw.
        candidates: or the vocabulary, if that is less.
        total: what all tokens of a row weigh; None: top-k leaves no more than the candidates.

    Returns:
        The tokens, and whether the whole vocabulary would have given the same; both [rows, 1].
    """
    logits, tokens = rows.blocks.likeliest(min(candidates, rows.blocks.vocabulary))
    weights = rows.weight(logits) * (torch.arange(tokens.shape[1], device=tokens.device) < rows.top_k)
    sure = rows.top_k <= tokens.shape[1]
    own = weights.sum(-1, keepdim=True)
    mass = rows.top_p * (own if total is None else torch.where(sure, own, total))
    cumulated = weights.cumsum(-1)
    enough = weights >= rows.min_p  # the best one weighs 1
    kept = weights * (cumulated - weights < mass) * enough  # the first always is: top_p > 0
    index, _ = _drawn(kept, rows.draw)
    ends = (rows.top_k >= rows.blocks.vocabulary) & (cumulated[:, -1:] >= mass)
    return tokens.gather(1, index), sure | ends | ~enough[:, -1:]


def _drawn(weights: torch.Tensor, draw: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Draw one of several in proportion to their weights.

    Args:
        weights: [rows, n], float64, in the order that `draw` goes through.
        draw: [rows, 1], in [0, 1).

    Returns:
        The index of the one, and how far `draw` goes into its weight, in [0, 1); both [rows, 1].
    """
    cumulated = weights.cumsum(-1)
    total = cumulated[:, -1:]
    target = torch.minimum(draw * total, torch.nextafter(total, torch.zeros_like(total)))  # rounding may reach it
    index = (cumulated <= target).sum(-1, keepdim=True)
    own = weights.gather(1, index)
    return index, ((target - cumulated.gather(1, index) + own) / own).clamp_(0, 1)
