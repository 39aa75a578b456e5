"""Which tokens a request's grammar lets come next. Masks are made in threads beside the steps."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper

from graft_runtime.errors import ErrorCode, GraftError

WORD_BITS = 32
_LIMITS = LLParserLimits(step_max_items=20_000, max_lexer_states=50_000, verbose_errors=False)
"""Of what an answer may take: about 20 ms of a processor a token, and 100 MB; then the request fails."""
_threads = ThreadPoolExecutor(2, thread_name_prefix="masks")


class TokenTable:
    """The tokens of one tokenizer, as llguidance reads them. A token behind the last one stands for the end.

    Args:
        tokens: what each token adds to a text, in bytes; none for one that may be in no text.
    """

    bos_token_id = None

    def __init__(self, tokens: Sequence[bytes]) -> None:
        self.tokens = [*tokens, b""]
        self.eos_token_id = len(tokens)

    def constraint(self, grammar: str) -> Constraint:
        """Return a constraint at its beginning. The first one of a table takes seconds. Not for several threads.

        Raises:
            GraftError: InvalidRequest.
        """
        matcher = LLMatcher(self._table, grammar, log_level=0, limits=_LIMITS)
        _check(matcher)
        return Constraint(matcher, self.eos_token_id)

    @cached_property
    def _table(self) -> LLTokenizer:
        return LLTokenizer(TokenizerWrapper(self))

    def __call__(self, text: bytes) -> list[int]:
        """Return no token: grammars that force no tokens have nothing encoded."""
        return []


@dataclass(frozen=True)
class Mask:
    """What may come next."""

    words: np.ndarray
    """A bit for each token, the lowest first, int32; the token behind the last one stands for the end."""
    may_end: bool
    over: bool
    """Nothing but the end can follow."""

    def allowing(self, ends: Sequence[int], width: int) -> np.ndarray:
        """Return the words for logits of so many tokens; the stop tokens are allowed where the answer may end."""
        words = np.zeros(-(-width // WORD_BITS), dtype=np.int32)
        count = min(len(words), len(self.words))
        words[:count] = self.words[:count]
        bits = words.view(np.uint32)
        for token in ends if self.may_end else ():
            if token < width:
                bits[token // WORD_BITS] |= np.uint32(1 << token % WORD_BITS)
        return words


class Constraint:
    """Follows the answer of one request through its grammar.

    Args:
        matcher: at the beginning of the grammar.
        size: of the vocabulary, in tokens.
    """

    def __init__(self, matcher: LLMatcher, size: int) -> None:
        self._matcher, self._size = matcher, size
        self._mask: Future[Mask] = _threads.submit(self._made)

    def advance(self, token: int) -> None:
        """Take note of the next token of the answer; the mask after it is made meanwhile."""
        self._mask = _threads.submit(self._made, token)

    def mask(self) -> Mask:
        """Return what may come next, once it is known. Raises GraftError: InvalidRequest."""
        try:
            return self._mask.result()
        except Exception:
            raise
        except BaseException as error:  # a panic of its Rust is no Exception
            raise GraftError(ErrorCode.INTERNAL, f"the form of the answer can't be followed: {error}") from error

    def _made(self, token: int | None = None) -> Mask:
        if token is not None:
            self._matcher.consume_token(token)
            _check(self._matcher)
        words = np.frombuffer(self._matcher.compute_bitmask(), dtype=np.int32).copy()
        _check(self._matcher)
        word, bit = divmod(self._size, WORD_BITS)
        end = np.uint32(1 << bit)
        bits = words.view(np.uint32)
        may_end = bool(bits[word] & end)
        bits[word] &= ~end
        return Mask(words, may_end, over=self._matcher.is_stopped() or (may_end and not words.any()))


def _check(matcher: LLMatcher) -> None:
    if matcher.is_error():
        what = f"the answer can't go on in the form that was asked for: {matcher.get_error().partition(chr(10))[0]}"
        raise GraftError(ErrorCode.INVALID_REQUEST, what, hint="make the form simpler")


def forbid(logits: torch.Tensor, words: Sequence[tuple[int, np.ndarray]]) -> None:
    """Make logits of tokens -inf that may not come next.

    Args:
        logits: [rows, vocabulary].
        words: a row, and the words of its mask, for each that has one.
    """
    rows = torch.tensor([row for row, _ in words], device=logits.device)
    packed = torch.from_numpy(np.stack([one for _, one in words])).to(logits.device)
    bits = packed[:, :, None] >> torch.arange(WORD_BITS, dtype=torch.int32, device=logits.device) & 1
    forbidden = bits.flatten(1)[:, : logits.shape[1]] == 0
    logits[rows] = logits[rows].masked_fill(forbidden, float("-inf"))
