"""A step as a value, and the two protocols below it: a second implementation, plain and slow, is the oracle."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.adapters.compile import compile_adapter
from graft_runtime.adapters.deltas import Prefix
from graft_runtime.adapters.files import read_adapter_files
from graft_runtime.model.bank import Bank
from graft_runtime.model.buffers import Buffers
from graft_runtime.model.hooks import AdapterModules
from graft_runtime.model.load import load_base
from graft_runtime.model.rows import RowAdapter
from graft_runtime.runners.decoder import over_pages
from graft_runtime.runners.decoder.attention import Family, LayerShape, Piece, Score
from graft_runtime.runners.decoder.pages import PAGE, Pages
from graft_runtime.runners.decoder.places import Places, open_places
from graft_runtime.runners.decoder.probe import probe
from graft_runtime.runners.decoder.runner import DecoderRunner
from graft_runtime.runners.decoder.step import PackedRow, Step

CPU = torch.device("cpu")


@dataclass(eq=False)
class Ragged:
    """A sequence's keys and values, of each layer [tokens, heads, features]."""

    keys: list[torch.Tensor]
    values: list[torch.Tensor]

    @property
    def capacity(self) -> int:
        return 1 << 20


class RaggedStore:
    """KeysAndValues that append."""

    tokens, longest, block = 1 << 20, 1 << 20, 0

    def __init__(self, layers: Sequence[LayerShape]) -> None:
        self.layers, self.reserved = layers, 0

    def reserve(self, tokens: int, past: Sequence[bytes] = ()) -> Ragged:
        return Ragged(
            [torch.zeros(0, layer.heads, layer.key_features) for layer in self.layers],
            [torch.zeros(0, layer.heads, layer.value_features) for layer in self.layers],
        )

    def grow(self, place: Ragged, tokens: int, used: int) -> Ragged:
        return place

    def release(self, place: Ragged) -> None:
        pass

    def keep(self, place: Ragged, past: Sequence[bytes]) -> None:
        pass

    def fill(self, place: Ragged, prefix: Prefix) -> None:
        place.keys = [keys.transpose(0, 1) for keys in prefix.keys]
        place.values = [values.transpose(0, 1) for values in prefix.values]

    def beside(self, lengths: Sequence[int]) -> RaggedStore:
        return self


class OneByOne:
    """Attention of one token and one head at a time. Pieces stand in the reverse of the order that they come in."""

    def __init__(self, windows: Sequence[int | None]) -> None:
        self.windows = windows

    def arrange(self, pieces: Sequence[Piece]) -> OneByOne:
        made = OneByOne(self.windows)
        made.order = range(len(pieces))[::-1]
        made.pieces = [pieces[index] for index in made.order]
        return made

    order: Sequence[int]
    pieces: list[Piece]

    def attend(self, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, layer: int, score: Score) -> torch.Tensor:
        results, first = [], 0
        for piece in self.pieces:
            mine = slice(first, first + piece.tokens)
            keys = torch.cat([piece.place.keys[layer][: piece.start], k[mine]])
            values = torch.cat([piece.place.values[layer][: piece.start], v[mine]])
            piece.place.keys[layer], piece.place.values[layer] = keys, values
            for token, at in enumerate(range(piece.start, piece.end), start=first):
                window = self.windows[layer]
                seen = slice(0 if window is None else max(0, at - window + 1), at + 1)
                results.append(self._token(q[token], keys[seen], values[seen], score))
            first += piece.tokens
        return torch.stack(results)

    @staticmethod
    def _token(q: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, score: Score) -> torch.Tensor:
        heads = []
        for head, query in enumerate(q):
            key_head = head * keys.shape[1] // q.shape[0]
            scores = keys[:, key_head] @ query * (score.scale or query.shape[0] ** -0.5)
            if score.softcap is not None:
                scores = torch.tanh(scores / score.softcap) * score.softcap
            if score.sinks is not None:
                scores = torch.cat([scores, score.sinks[head : head + 1]])
            weights = scores.softmax(0)[: keys.shape[0]]
            heads.append(weights @ values[:, key_head])
        return torch.stack(heads)


def in_given_order(arrangement: Any, made: torch.Tensor, tokens: Sequence[int]) -> torch.Tensor:
    """The tokens of each piece where the piece stands among those that were handed in."""
    parts = torch.split(made, [tokens[index] for index in arrangement.order])
    return torch.cat([part for _, part in sorted(zip(arrangement.order, parts, strict=True), key=lambda pair: pair[0])])


@pytest.mark.parametrize(
    "score",
    [
        Score(None, None, None),
        Score(0.3, 2.0, None),
        Score(None, None, torch.tensor([0.5, -1.0, 2.0, 0.0])),
        Score(0.5, 1.5, torch.tensor([0.5, -1.0, 2.0, 0.0])),
    ],
    ids=["plain", "softcap", "sinks", "both"],
)
@pytest.mark.parametrize("windows", [(None, None), (3, None), (70, 5)])
@pytest.mark.parametrize("pages", [False, True], ids=["extents", "pages"])
def test_attention_is_that_of_each_token_alone(
    score: Score, windows: tuple[int | None, ...], *, pages: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(over_pages, "COPIED", 2 * 2 * PAGE * 2 * 8 * 4)  # of two rows of two pages
    torch.manual_seed(0)
    chosen = random.Random(0)
    layers = (LayerShape(2, 8, 6),) * 2
    family = Family(layers, windows, score.softcap is not None)
    places = open_places(family, pages=pages, tokens=4096, longest=512, dtype=torch.float32, device=CPU)
    if isinstance(places.kv, Pages):
        for pool in (*places.kv.keys, *places.kv.values):
            pool.fill_(float("nan"))  # as an earlier sequence may have left it
    ragged, oracle = RaggedStore(layers), OneByOne(windows)
    sequences: list[list[Any]] = [
        [places.kv.reserve(length), ragged.reserve(length), 0] for length in (10, 60, 200, 30, 400)
    ]
    for step in range(12):
        going = chosen.sample(sequences, chosen.randrange(1, 6)) if step else sequences
        tokens = [chosen.choice([1, 1, 1, 2, 3]) for _ in going] if step else [3, 20, 150, 20, 250]
        counted = list(zip(going, tokens, strict=True))
        ours = places.attention.arrange([Piece(one[0], one[2], count) for one, count in counted])
        theirs = oracle.arrange([Piece(one[1], one[2], count) for one, count in counted])
        for layer in range(len(layers)):
            given = [tuple(torch.randn(count, *size) for size in ((4, 8), (2, 8), (2, 6))) for count in tokens]
            made = []
            for arrangement in (ours, theirs):
                q, k, v = (torch.cat([given[index][role] for index in arrangement.order]) for role in range(3))
                made.append(in_given_order(arrangement, arrangement.attend(q, k, v, layer, score), tokens))
            torch.testing.assert_close(made[0], made[1], rtol=1e-5, atol=1e-5)
        for one, count in counted:
            one[2] += count


class Setting:
    """A base with two runners on it, and an adapter."""

    def __init__(self, directory: Path, adapter: Path) -> None:
        self.base = load_base(directory, name="tiny", dtype="float32", max_sequence_length=256)
        base = self.base
        self.bank = Bank(base.layout.linear, max_rank=16, dtype=base.dtype, device=base.device)
        modules = AdapterModules(base.model, self.bank)
        family = probe(base, modules, pages=False)
        self.runner = DecoderRunner(
            base,
            modules,
            open_places(family, pages=False, tokens=4096, longest=256, dtype=base.dtype, device=base.device),
        )
        self.plain = DecoderRunner(base, modules, Places(RaggedStore(family.layers), OneByOne(family.windows)))
        files = read_adapter_files(adapter, name="one", max_rank=16)
        compiled = compile_adapter(files, base.layout, base.modules, dtype=base.dtype, device=base.device)
        self.adapters = (RowAdapter(compiled, 1.0),)


@pytest.fixture
def setting(make_base: Any, make_adapter: Any) -> Setting:
    base = make_base("gemma3")  # a window of 8 tokens on one of its layers
    return Setting(base, make_adapter("one", base=base))


@torch.inference_mode()
def test_another_store_and_another_attention_dock_onto_the_runner(setting: Setting) -> None:
    prompts = [[5, 3, 7, 2, 9, 4, 8, 1, 6, 2, 5, 3], [6, 8], [4, 4, 1, 9]]
    adapters = [setting.adapters, (), setting.adapters]
    assert setting.bank.hold(setting.adapters)
    made = setting.runner.logits_of(prompts, adapters)
    torch.testing.assert_close(made, setting.plain.logits_of(prompts, adapters), rtol=1e-4, atol=1e-4)
    alone = torch.cat([setting.runner.logits_of([p], [a]) for p, a in zip(prompts, adapters, strict=True)])
    torch.testing.assert_close(made, alone, rtol=1e-4, atol=1e-4)


def tensors_of(step: Step) -> dict[str, torch.Tensor]:
    assert step.adapters is not None
    taken = step.adapters.all
    found = {"ids": step.ids, "positions": step.positions, "last": step.last, "slots": taken.slots}
    found |= {"slot_weights": taken.slot_weights, "adapters' positions": taken.positions}
    optional = {"hidden": taken.hidden, "column_weights": taken.column_weights}
    return found | {name: tensor for name, tensor in optional.items() if tensor is not None}


@torch.inference_mode()
def test_a_step_is_filled_in_place(setting: Setting) -> None:
    runner, half = setting.runner, (RowAdapter(setting.adapters[0].adapter, 0.5),)
    assert setting.bank.hold(setting.adapters)
    places = [runner.kv.reserve(20) for _ in range(3)]

    def pack(at: int, *adapters: tuple[RowAdapter, ...]) -> Step:
        return runner.pack(
            [
                PackedRow(Piece(place, at, 1), [at + row], mine, answers=True)
                for row, (place, mine) in enumerate(zip(places, adapters, strict=True))
            ]
        )

    first = tensors_of(pack(0, half, (), setting.adapters))
    assert first["column_weights"][:, 0].tolist() == [0.5, 0.0, 1.0]
    addresses = {name: tensor.data_ptr() for name, tensor in first.items()}
    for at, adapters in ((1, (half, (), setting.adapters)), (2, (setting.adapters, half, ()))):
        step = pack(at, *adapters)
        later = tensors_of(step)
        assert {name: tensor.data_ptr() for name, tensor in later.items()} == addresses
        assert (step.ids.tolist(), step.positions.tolist()) == ([[at, at + 1, at + 2]], [[at] * 3])
        assert later["adapters' positions"].tolist() == [at] * 3
        weights = [sum(part.weight for part in mine) for mine in adapters]
        assert later["column_weights"][:, 0].tolist() == weights
        assert later["hidden"][:, 0].tolist() == [weight == 0 for weight in weights]
        assert later["slot_weights"][:, 1].tolist() == weights


@torch.inference_mode()
def test_a_larger_step_moves_buffers_and_a_smaller_one_does_not(setting: Setting) -> None:
    buffers = Buffers(CPU)
    small = buffers.fill("ids", [1, 2, 3]).data_ptr()
    assert buffers.fill("ids", range(64)).data_ptr() == small
    assert buffers.fill("ids", range(65)).tolist() == list(range(65))
    large = buffers.fill("ids", range(128)).data_ptr()
    assert buffers.fill("ids", [7]).data_ptr() == large != small
    assert buffers.fill("last", [7]).data_ptr() != large
