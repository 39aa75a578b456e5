"""Static steps on a GPU: pages through the flash kernel, and CUDA graphs that are captured, replayed and given up."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.messages import Generate, Sampling, ServedAdapter
from graft_runtime.runners.decoder.attention import Family, LayerShape, Piece, Score
from graft_runtime.runners.decoder.pages import PAGE, Pages
from graft_runtime.runners.decoder.places import open_places

ROWS, TOKENS = 6, 24
POISON = 256 << 20
"""Bytes of memory that hold NaN before a kernel writes its result there."""


def poison() -> None:
    """Let the memory that is handed out next hold NaN, so that a value that nobody writes shows."""
    kept = [torch.full((size // 2,), float("nan"), dtype=torch.bfloat16, device="cuda") for size in (POISON, 1 << 20)]
    kept += [torch.full((1 << power,), float("nan"), dtype=torch.bfloat16, device="cuda") for power in range(4, 20)]
    del kept


def expected(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, window: int | None, score: Score) -> Any:
    """Attention of the last tokens of one sequence, in float32: [tokens, heads, features]."""
    groups = q.shape[1] // keys.shape[1]
    k, v = (tensor.float().repeat_interleave(groups, dim=1).transpose(0, 1) for tensor in (keys, values))
    scores = q.float().transpose(0, 1) @ k.transpose(1, 2) * (score.scale or q.shape[-1] ** -0.5)
    at = torch.arange(keys.shape[0], device=q.device)
    own = at[-q.shape[0] :, None]
    hidden = (at > own) | (at <= own - (window or 1 << 30))
    scores = scores.masked_fill(hidden, float("-inf"))
    if score.sinks is not None:
        scores = torch.cat([scores, score.sinks.float().view(-1, 1, 1).expand(-1, q.shape[0], 1)], dim=-1)
    return (scores.softmax(-1)[..., : keys.shape[0]] @ v).transpose(0, 1)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("window", [None, 100])
@pytest.mark.parametrize(("features", "groups"), [(64, 4), (128, 1), (256, 8)])
@torch.inference_mode()
def test_every_value_of_every_row_is_written(features: int, groups: int, window: int | None, *, sinks: bool) -> None:
    """Rows that decode and spans, short and long, over pages that hold NaN beyond what was written."""
    torch.manual_seed(0)
    device, heads = torch.device("cuda"), 2
    family = Family((LayerShape(heads, features, features),), (window,), softcap=False)
    places = open_places(family, pages=True, tokens=96 * PAGE, longest=2048, dtype=torch.bfloat16, device=device)
    assert isinstance(places.kv, Pages)
    for pool in (*places.kv.keys, *places.kv.values):
        pool.fill_(float("nan"))
    score = Score(0.1, None, torch.randn(heads * groups, device=device, dtype=torch.bfloat16) if sinks else None)
    lengths = [1, 250, 256, 700, 1500, 1999]
    rows = [places.kv.reserve(length + 40) for length in lengths]
    kept: list[list[torch.Tensor]] = [[torch.empty(0, heads, features, device=device)] * 2 for _ in lengths]
    for counts in (lengths, [1] * 6, [1, 30, 1, 1, 5, 1], [1] * 6):
        pieces = [Piece(row, mine[0].shape[0], count) for row, mine, count in zip(rows, kept, counts, strict=True)]
        arrangement = places.attention.arrange(pieces)
        given = [
            [torch.randn(count, size, features, device=device, dtype=torch.bfloat16) for size in sizes]
            for count in counts
            for sizes in [(heads * groups, heads, heads)]
        ]
        poison()
        q, k, v = (torch.cat([given[index][role] for index in arrangement.order]) for role in range(3))
        made = arrangement.attend(q, k, v, 0, score)
        assert torch.isfinite(made).all()
        first = 0
        for index in arrangement.order:
            kept[index] = [torch.cat(pair) for pair in zip(kept[index], given[index][1:], strict=True)]
            wanted = expected(given[index][0], kept[index][0], kept[index][1], window, score)
            mine = made[first : first + counts[index]].float()
            first += counts[index]
            assert (mine - wanted).norm() / wanted.norm() < 2e-2, (counts, index)


def asked(names: list[str | None], tokens: int = TOKENS) -> list[Generate]:
    """Rows of unequal length, of the base and of adapters in turns."""
    return [
        Generate(
            str(row),
            [256, *b"select * from users"[: 3 + 2 * row], row],
            tokens - row % 3,
            (ServedAdapter(name, 1.0),) if (name := names[row % len(names)]) else (),
            Sampling(temperature=0),
        )
        for row in range(ROWS)
    ]


@pytest.mark.parametrize("family", ["llama", "gemma3", "gemma2"])
def test_a_replayed_graph_answers_as_packed_steps(
    family: str, make_base: Any, make_adapter: Any, in_process: Any
) -> None:
    base = make_base(family)
    engine = in_process(base, max_sequences=8)
    runner = engine.engine.serving.runner
    assert runner.captured.count == 4, "of the base, before the first request"
    names: list[str | None] = [None, "one", "two"]
    for name, rank in (("one", 4), ("two", 12)):
        engine.mount(name, make_adapter(name, base=base, r=rank))
    first, second = (engine.answers(asked(names)) for _ in range(2))
    assert first == second
    graphs, rooms = runner.captured.count, runner.static
    assert graphs > 4
    runner.static = None
    assert engine.answers(asked(names)) == first
    runner.static = rooms
    assert engine.answers(asked(names)) == first, "the same graphs once more"
    assert runner.captured.count == graphs


def test_a_graph_takes_the_columns_of_whichever_adapter_is_there(
    tiny_base: Path, make_adapter: Any, in_process: Any
) -> None:
    engine = in_process(tiny_base, max_sequences=8)
    runner = engine.engine.serving.runner
    for name in ("one", "two"):
        engine.mount(name, make_adapter(name, r=4))
    one, again = (engine.answers(asked(["one"])) for _ in range(2))
    assert one == again
    graphs = runner.captured.count
    two = engine.answers(asked(["two"]))
    assert two != one
    assert runner.captured.count == graphs, "both replay the same"
    runner.static = None
    assert engine.answers(asked(["two"])) == two


def test_what_cannot_be_captured_runs_as_it_is(
    tiny_base: Path, in_process: Any, caplog: pytest.LogCaptureFixture
) -> None:
    """A model that reads a value on the host: one line in the log, and the same answers."""
    plain = in_process(tiny_base, max_sequences=8)
    expected_answers = plain.answers(asked([None]))
    engine = in_process(tiny_base, max_sequences=8)

    def read(module: Any, inputs: Any, output: torch.Tensor) -> None:
        output.sum().item()

    engine.engine.serving.base.model.model.norm.register_forward_hook(read)
    runner = engine.engine.serving.runner
    runner.captured._graphs.clear()
    with caplog.at_level(logging.WARNING):
        assert engine.answers(asked([None])) == expected_answers
    assert runner.captured.count == 0
    assert caplog.text.count("without CUDA graphs") == 1
    assert engine.answers(asked([None])) == expected_answers


def test_graphs_stay_within_what_the_ledger_gives_them(tiny_base: Path, make_adapter: Any, in_process: Any) -> None:
    engine = in_process(tiny_base, max_sequences=8)
    captured = engine.engine.serving.runner.captured
    assert captured.bytes <= captured._room
    captured._room = 0
    for number, rank in enumerate((2, 16)):
        engine.mount(str(number), make_adapter(str(number), r=rank))
        engine.answers(asked([str(number)]))
        assert captured.bytes == 0
