"""The logits of rows in blocks of the vocabulary, so that the best and the drawn token are found without a sort."""

from __future__ import annotations

import torch

SIZE = 256
"""Tokens of a block: of 64 to 1,024, what takes the least time on a vocabulary of 262,144."""


class Blocks:
    """Logits of rows, block by block; the last block may be shorter.

    Args:
        logits: [rows, vocabulary].
        highest: logit of each block, [rows, blocks], if somebody knows it.
    """

    def __init__(self, logits: torch.Tensor, highest: torch.Tensor | None = None) -> None:
        self._logits = logits
        self.vocabulary = logits.shape[1]
        even = logits.shape[1] // SIZE * SIZE
        parts = (logits[:, :even].view(logits.shape[0], -1, SIZE), logits[:, even:].unsqueeze(1))
        self._parts = [part for part in parts if part.numel()]
        if highest is None:
            highest = torch.cat([part.amax(-1) for part in self._parts], dim=1)  # NaN wins a maximum
        self._highest = highest

    def of(self, rows: torch.Tensor) -> Blocks:
        """Return the blocks of some rows."""
        return Blocks(self._logits[rows], self._highest[rows])

    def best(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best logit of each row and its token, both [rows, 1]."""
        logits, tokens = self.members(self._highest.argmax(-1, keepdim=True))
        best, index = logits.max(-1, keepdim=True)
        return best, tokens.gather(1, index)

    def likeliest(self, count: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the best `count` logits of each row, the best first, and their tokens, both [rows, count].

        They are in the `count` blocks with the best maxima.
        """
        if count * SIZE >= self.vocabulary:
            logits, tokens = self._logits.topk(count, dim=1)
            return logits, tokens
        logits, tokens = self.members(self._highest.topk(count, dim=1, sorted=False).indices)
        best, index = logits.topk(count, dim=1)
        return best, tokens.gather(1, index)

    def weights(self, best: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
        """Return what the tokens of each block weigh together, [rows, blocks], float64; see `weight`."""
        parts = [weight(part, best[..., None], temperature[..., None]).sum(-1) for part in self._parts]
        return torch.cat(parts, dim=1).double()

    def members(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the logits of these blocks, [rows, n], and the tokens, [rows, n * SIZE] both; -inf beyond the last."""
        tokens = (blocks[..., None] * SIZE + torch.arange(SIZE, device=blocks.device)).flatten(1)
        logits = self._logits.gather(1, tokens.clamp(max=self.vocabulary - 1))
        return logits.masked_fill_(tokens >= self.vocabulary, float("-inf")), tokens


def weight(logits: torch.Tensor, best: torch.Tensor, temperature: torch.Tensor) -> torch.Tensor:
    """Return what tokens weigh against the best one of their row, which weighs 1; float32.

    The best logit is taken off before the division: a tiny temperature must not overflow.
    """
    return logits.to(torch.float32, copy=True).sub_(best).div_(temperature).exp_()
