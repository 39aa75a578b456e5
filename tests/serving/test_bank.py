"""The active bank: columns, slots and vectors of adapters with running requests, and what a pass is told of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from graft_runtime.adapters.deltas import CompiledAdapter, LowRank, ModuleDelta
from graft_runtime.adapters.layout import LinearShape
from graft_runtime.contract.facts import AdapterFacts
from graft_runtime.model.bank import Bank
from graft_runtime.model.rows import Row, RowAdapter, TokenAdapters

SHAPES = {"q": LinearShape(6, 4), "up": LinearShape(4, 8)}
CPU = torch.device("cpu")
NO_TOKENS = torch.zeros(0, dtype=torch.long)


def low_rank(path: str, rank: int, value: float) -> ModuleDelta:
    shape = SHAPES[path]
    a, b = (torch.full((rank, size), value) for size in (shape.input_features, shape.output_features))
    return ModuleDelta(low_rank=LowRank(a, b))


def adapter(rank: int, value: float = 1.0, **vectors: torch.Tensor) -> CompiledAdapter:
    deltas = {path: low_rank(path, rank, value) for path in SHAPES} if rank else {"q": ModuleDelta(**vectors)}  # type: ignore[arg-type]
    facts = AdapterFacts(method="LORA", rank=rank, module_count=len(deltas), deltas=frozenset())
    return CompiledAdapter(facts, deltas)


def row(*adapters: CompiledAdapter, weight: float = 1.0, start: int = 0) -> tuple[RowAdapter, ...]:
    return tuple(RowAdapter(one, weight, start) for one in adapters)


@pytest.fixture
def make_bank() -> Callable[..., Bank]:
    def make(columns: int = 32, max_rank: int = 8) -> Bank:
        return Bank(SHAPES, max_rank=max_rank, dtype=torch.float32, device=CPU, columns=columns)

    return make


def columns_of(bank: Bank, path: str = "q") -> tuple[torch.Tensor, torch.Tensor]:
    both = bank.modules[path].columns
    assert both is not None
    return both[0][: bank.width], both[1][: bank.width]


def addresses(bank: Bank) -> Mapping[str, tuple[int, int]]:
    return {path: tuple(side.data_ptr() for side in columns_of(bank, path)) for path in bank.modules}  # type: ignore[misc]


def test_the_width_follows_what_runs_and_its_columns_stay_where_they_are(make_bank: Any) -> None:
    bank, narrow, wide = make_bank(columns=128, max_rank=100), adapter(4, 1.0), adapter(100, 2.0)
    assert bank.hold(row(narrow))
    assert bank.width == 16
    before = addresses(bank)
    assert bank.hold(row(wide))
    assert (bank.width, addresses(bank)) == (128, before)
    assert columns_of(bank)[0][:, 0].tolist() == [1.0] * 4 + [2.0] * 100 + [0.0] * 24
    bank.release(row(wide))
    assert (bank.width, addresses(bank)) == (16, before)
    assert columns_of(bank)[1][:, 0].tolist() == [1.0] * 4 + [0.0] * 12
    assert bank.hold(row(wide))
    assert addresses(bank) == before


def test_what_the_columns_reserve_is_what_the_ledger_counts(make_bank: Any) -> None:
    bank = make_bank(columns=128)
    assert bank.hold(row(adapter(2)))
    assert sum(module.bytes for module in bank.modules.values()) == bank.bytes_at_most == 128 * (6 + 4 + 4 + 8) * 4


def test_columns_are_the_lowest_that_are_free_and_lie_together(make_bank: Any) -> None:
    bank = make_bank()
    first, second, third = adapter(4, 1.0), adapter(4, 2.0), adapter(6, 3.0)
    assert bank.hold(row(first, second))
    bank.release(row(first))
    assert not columns_of(bank)[0][:4].any(), "zeroed"
    assert bank.hold(row(third)), "six columns do not fit into four"
    assert columns_of(bank)[0][:, 0].tolist() == [0.0] * 4 + [2.0] * 4 + [3.0] * 6 + [0.0] * 2
    assert bank.hold(row(first))
    assert columns_of(bank)[0][:4, 0].tolist() == [1.0] * 4


def test_what_does_not_fit_changes_nothing(make_bank: Any) -> None:
    bank = make_bank(columns=16)
    runs, fits, too_much = adapter(8), adapter(8), adapter(4)
    assert bank.hold(row(runs))
    version = bank.version
    assert not bank.hold(row(runs, fits, too_much))
    assert bank.active == 1
    bank.release(row(runs))
    assert bank.active == 0
    assert bank.version != version
    assert bank.can_ever_hold(row(runs, fits, fits))
    assert not bank.can_ever_hold(row(runs, fits, too_much))


def test_a_trial_goes_beyond_the_limit_and_leaves_no_trace(make_bank: Any) -> None:
    bank, runs, tried = make_bank(columns=16, max_rank=16), adapter(12, 1.0), adapter(16, 7.0)
    assert bank.hold(row(runs))
    before = addresses(bank)
    bank.hold_for_trial(tried)
    assert bank.width == 32
    assert columns_of(bank)[0][:, 0].tolist() == [1.0] * 12 + [7.0] * 16 + [0.0] * 4
    bank.release(row(tried))
    assert (bank.width, addresses(bank)) == (16, before)
    assert columns_of(bank)[0][:, 0].tolist() == [1.0] * 12 + [0.0] * 4


def test_an_adapter_stays_active_while_any_request_holds_it(make_bank: Any) -> None:
    bank, one = make_bank(), adapter(2)
    assert bank.hold(row(one))
    assert bank.hold(row(one, one))
    bank.release(row(one, one))
    assert bank.active == 1
    bank.release(row(one))
    assert (bank.active, bank.width, bank.modules["q"].used) == (0, 0, False)


def test_vectors_lie_in_the_slot_of_their_adapter_and_become_neutral_again(make_bank: Any) -> None:
    bank, gained = make_bank(), adapter(0, gain=torch.full((4,), 3.0))
    assert bank.hold(row(adapter(2)))
    assert bank.hold(row(gained))
    assert (bank.slot(gained), bank.width) == (2, 16)
    module, slots = bank.modules["q"], torch.tensor([0, 2, 1, 99])
    assert module.uses("gain")
    assert module.vector("gain", slots)[:, 0].tolist() == [1.0, 3.0, 1.0, 1.0]
    bank.release(row(gained))
    assert module.vector("gain", slots)[:, 0].tolist() == [1.0] * 4
    assert not module.uses("gain")


def taken_by(bank: Bank, *rows: Row) -> TokenAdapters:
    inputs = bank.inputs(rows, NO_TOKENS)
    assert inputs is not None
    return inputs.all


def test_a_pass_is_told_owners_weights_and_positions(make_bank: Any) -> None:
    bank, one, two = make_bank(), adapter(2), adapter(1)
    assert bank.hold(row(one, two))
    assert bank.inputs([Row((), 0, 3)], NO_TOKENS) is None
    rows = [Row(row(one, weight=0.5), 7, 2), Row((), 0, 1), Row(row(one, two), 4, 1)]
    taken = taken_by(bank, *rows)
    assert taken.slots.tolist() == [1, 1, 0, 0], "sums have no vectors"
    assert taken.positions.tolist() == [7, 8, 0, 4]
    assert taken.column_weights is not None
    assert taken.column_weights[:, :4].tolist() == [[0.5, 0.5, 0, 0]] * 2 + [[0.0] * 4, [1.0, 1.0, 1.0, 0]]
    assert taken.hidden is not None
    assert torch.equal(taken.hidden, taken.column_weights == 0)
    assert taken.slot_weights.tolist() == [[0, 0.5, 0]] * 2 + [[0.0] * 3, [0.0, 1.0, 1.0]]


def test_what_need_not_be_computed_is_left_out(make_bank: Any) -> None:
    bank, one = make_bank(), adapter(2)
    assert bank.hold(row(one))
    taken = taken_by(bank, Row(row(one), 0, 2))
    assert (taken.hidden, taken.column_weights) == (None, None)
    taken = taken_by(bank, Row(row(one), 0, 2), Row((), 0, 1))
    assert (taken.hidden is None, taken.column_weights) == (False, None)


def test_a_later_start_hides_the_tokens_before_it_and_only_in_its_own_pass(make_bank: Any) -> None:
    bank, one = make_bank(), adapter(2)
    assert bank.hold(row(one))
    late = row(one, start=5)
    assert taken_by(bank, Row(late, 3, 4), Row((), 0, 1)).slot_weights[:, 1].tolist() == [0.0, 0.0, 1.0, 1.0, 0.0]
    assert taken_by(bank, Row(late, 7, 4), Row((), 0, 1)).slot_weights[:, 1].tolist() == [1.0] * 4 + [0.0]
    assert taken_by(bank, Row(late, 0, 4), Row((), 0, 1)).slot_weights[:, 1].tolist() == [0.0] * 5


def test_runs_name_only_the_columns_that_tokens_take(make_bank: Any) -> None:
    bank, one, other = make_bank(), adapter(4), adapter(2)
    assert bank.hold((*row(one), *row(other)))
    twice, half = (*row(one), *row(other, weight=0.5)), row(other, start=7)
    inputs = bank.inputs(
        [Row(row(one), 0, 3), Row(row(one), 4, 1), Row((), 0, 2), Row(twice, 0, 1), Row(half, 5, 4)], NO_TOKENS
    )
    assert inputs.all.runs.tolist() == [[0, 4, 0, 4, 1], [6, 1, 0, 4, 1], [6, 1, 4, 2, 0.5], [9, 2, 4, 2, 1]]


def test_the_next_pass_of_the_same_rows_has_new_positions_alone(make_bank: Any) -> None:
    bank, one, two = make_bank(), adapter(2), adapter(2)
    assert bank.hold(row(one, two))
    first = taken_by(bank, Row(row(one), 4, 1), Row(row(two), 9, 1))
    kept = first.slot_weights.clone()
    second = taken_by(bank, Row(row(one), 5, 1), Row(row(two), 10, 1))
    assert second.positions.tolist() == [5, 10]
    assert torch.equal(second.slot_weights, kept)
    assert taken_by(bank, Row(row(two), 6, 1), Row(row(one), 11, 1)).slots.tolist() == [2, 1]
    bank.release(row(one))
    assert bank.hold(row(adapter(0, gain=torch.ones(4)), one)), "its slot and its columns are another's now"
    assert taken_by(bank, Row(row(two), 6, 1), Row(row(one), 11, 1)).slots.tolist() == [2, 3]
