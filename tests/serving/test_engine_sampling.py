"""The next token: Transformers' distribution, the same draws for a seed in any batch, one row's faults its own."""

from __future__ import annotations

import pytest
import torch
from graft_runtime.engine.sampling import CANDIDATES, Draws, choose
from graft_runtime.messages import Sampling

VOCABULARY = 3 * CANDIDATES


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


def test_greedy_is_the_best_and_draws_nothing(logits: torch.Tensor) -> None:
    assert choose(logits, [Draws(Sampling(0))]) == [int(logits.argmax())]


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
