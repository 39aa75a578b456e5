"""The next token: Transformers' distribution, the same draws for a seed in any batch, one row's faults its own."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from graft_runtime.engine.blocks import SIZE
from graft_runtime.engine.sampling import CANDIDATES, Draws, choose
from graft_runtime.messages import Sampling

VOCABULARY = 20 * SIZE + 7
"""A vocabulary whose last block is not full."""


@pytest.fixture
def logits() -> torch.Tensor:
    torch.set_num_threads(1)
    return torch.randn(1, VOCABULARY, generator=torch.Generator().manual_seed(0)) * 2


def expected_distribution(logits: torch.Tensor, sampling: Sampling) -> torch.Tensor:
    from transformers import TemperatureLogitsWarper, TopKLogitsWarper, TopPLogitsWarper

    scores: torch.Tensor = TemperatureLogitsWarper(sampling.temperature)(None, logits)
    if sampling.top_k:
        scores = TopKLogitsWarper(sampling.top_k)(None, scores)
    if sampling.top_p < 1:
        scores = TopPLogitsWarper(sampling.top_p)(None, scores)
    return scores.double().softmax(-1)[0]


class Even:
    """Draws that go evenly through [0, 1): the tokens then count out the distribution itself."""

    def __init__(self, sampling: Sampling, count: int, offset: float = 0.5) -> None:
        self.sampling = sampling
        self._values = iter([(index + offset) / count for index in range(count)])

    def next(self) -> float:
        return next(self._values)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(0.3),
        Sampling(5.0),  # flat: most of the mass lies outside the first candidates
        Sampling(1.0, top_p=0.9),
        Sampling(5.0, top_p=0.95),
        Sampling(1.0, top_k=7),
        Sampling(5.0, top_k=2 * CANDIDATES),
        Sampling(5.0, top_p=0.5, top_k=40),
        Sampling(5.0, top_p=0.99, top_k=2 * CANDIDATES),
        Sampling(1.0, top_p=1e-9),
    ],
)
def test_the_distribution_is_that_of_transformers(logits: torch.Tensor, sampling: Sampling) -> None:
    count = 4000
    even = Even(sampling, count)
    rows = [Draws(sampling) for _ in range(count)]
    for row in rows:
        row.next = even.next  # type: ignore[method-assign]
    tokens = [token for start in range(0, count, 500) for token in choose(logits.expand(500, -1), rows[start:][:500])]
    drawn = torch.bincount(torch.tensor(tokens), minlength=VOCABULARY) / count
    expected = expected_distribution(logits, sampling)
    assert (drawn - expected).abs().max() <= 1.5 / count
    assert not drawn[expected == 0].any(), "a token outside top-k and top-p"


def token_after_a_sort(logits: torch.Tensor, sampling: Sampling, draw: float) -> int:
    """Return the token that a draw means: in the order of the vocabulary, or of the logits where these are limited."""
    weights = ((logits[0].double() - logits.max()) / sampling.temperature).exp()
    tokens = torch.arange(VOCABULARY)
    if 0 < sampling.top_k < VOCABULARY or sampling.top_p < 1:
        weights, tokens = weights.sort(descending=True)
        weights = weights[: sampling.top_k or VOCABULARY]
        weights = weights[weights.cumsum(0) - weights < sampling.top_p * weights.sum()]
    return int(tokens[(weights.cumsum(0) <= draw * weights.sum()).sum()])


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(1.0),
        Sampling(4.0),
        Sampling(0.7, top_k=1),
        Sampling(1.0, top_k=CANDIDATES),
        Sampling(1.0, top_k=CANDIDATES + 1),
        Sampling(1.0, top_p=0.8),
        Sampling(9.0, top_p=0.999),  # nearly all tokens
        Sampling(2.0, top_p=0.9, top_k=5 * CANDIDATES),
        Sampling(1.0, top_k=VOCABULARY),
    ],
)
def test_a_draw_gives_the_token_that_a_sort_of_all_gives(logits: torch.Tensor, sampling: Sampling) -> None:
    even = Even(sampling, 100)
    rows = [Draws(sampling) for _ in range(100)]
    for row in rows:
        row.next = even.next  # type: ignore[method-assign]
    drawn = choose(logits.expand(100, -1), rows)
    assert drawn == [token_after_a_sort(logits, sampling, (index + 0.5) / 100) for index in range(100)]


def test_rows_that_draw_in_every_way_share_a_batch(logits: torch.Tensor) -> None:
    ways = [Sampling(0), Sampling(1.0, seed=1), Sampling(1.0, top_k=20, seed=2), Sampling(3.0, top_p=0.9, seed=3)]
    rows = torch.cat([logits.roll(shift, dims=1) for shift in (0, 11, 300, 4000)])
    alone = [choose(rows[index : index + 1], [Draws(way)])[0] for index, way in enumerate(ways)]
    assert choose(rows, [Draws(way) for way in ways]) == alone
    order = [3, 1, 2, 0]
    assert choose(rows[order], [Draws(ways[row]) for row in order]) == [alone[row] for row in order]


def test_tokens_that_a_row_lacks_are_never_drawn(logits: torch.Tensor) -> None:
    lacking = torch.full_like(logits, float("-inf"))
    lacking[0, [0, 300, VOCABULARY - 1]] = 1.0
    for draw, token in ((0.0, 0), (0.34, 300), (1 - 2**-53, VOCABULARY - 1)):
        row = Draws(Sampling(1.0))
        row.next = partial(float, draw)  # type: ignore[method-assign]
        assert choose(lacking, [row]) == [token]


def test_greedy_is_the_best_and_draws_nothing(logits: torch.Tensor) -> None:
    assert choose(logits, [Draws(Sampling(0))]) == [int(logits.argmax())]
    equal = torch.zeros_like(logits)
    equal[0, [700, VOCABULARY - 1]] = 1.0
    assert choose(equal, [Draws(Sampling(0))]) == [700], "the first of the best"


def test_a_step_in_which_no_prompt_ends_draws_nothing(logits: torch.Tensor) -> None:
    assert choose(logits[:0], []) == []


def test_a_tiny_temperature_is_greedy(logits: torch.Tensor) -> None:
    assert choose(logits, [Draws(Sampling(1e-300))]) == [int(logits.argmax())]


def test_a_seed_gives_the_same_draws_in_any_batch(logits: torch.Tensor) -> None:
    sampling = Sampling(1.5, top_p=0.95, seed=7)

    def run(rows: int, place: int) -> list[int | None]:
        draws = [Draws(Sampling(1.0, seed=index)) for index in range(rows)]
        draws[place] = Draws(sampling)
        return [choose(logits.expand(rows, -1), draws)[place] for _ in range(10)]

    assert run(1, 0) == run(5, 3) == run(8, 0)
    assert len(set(run(1, 0))) > 1


def test_without_a_seed_each_request_differs(logits: torch.Tensor) -> None:
    flat = torch.zeros_like(logits)
    draws = [Draws(Sampling(1.0)) for _ in range(8)]
    assert len(set(choose(flat.expand(8, -1), draws))) > 1


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_row_that_is_not_finite_is_alone_with_it(logits: torch.Tensor, value: float) -> None:
    rows = logits.repeat(3, 1)
    rows[1, 5] = value
    draws = [Draws(Sampling(0)), Draws(Sampling(1.0)), Draws(Sampling(1.0, seed=3))]
    chosen = choose(rows, draws)
    assert chosen[1] is None
    assert chosen[0] == int(logits.argmax())
    assert chosen[2] == choose(logits, [Draws(Sampling(1.0, seed=3))])[0]
