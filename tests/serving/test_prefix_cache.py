"""What is kept of prompts and answers: right for those that begin the same, and out of reach for all others."""

from __future__ import annotations

import json
import random
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from graft_runtime.engine.budgets import Budgets
from graft_runtime.messages import Generate, Generated, Mounted, Sampling, ServedAdapter, Unmount
from graft_runtime.runners.decoder.attention import Family, LayerShape
from graft_runtime.runners.decoder.kept_blocks import BLOCK
from graft_runtime.runners.decoder.pages import PAGE
from graft_runtime.runners.decoder.past import Past, Recent
from graft_runtime.runners.decoder.places import open_places

from tests.support.bases import BaseFactory

LAYERS = (LayerShape(2, 4, 6), LayerShape(1, 8, 8))
CPU = torch.device("cpu")
NEVER = 1 << 62


def past_of(tokens: Sequence[int], *adapters: tuple[str, float, int], block: int = 4, salt: str = "") -> list[bytes]:
    return [*Past(block, salt, adapters, lambda start, end: tokens[start:end]).blocks(len(tokens))]


# which blocks are the same


def test_whole_blocks_alone_have_keys_and_a_sequence_that_goes_on_keeps_its_own() -> None:
    assert len(past_of(range(11))) == 2
    assert past_of(range(16))[:2] == past_of(range(11))
    assert past_of([1, 2, 3, 4])[0] != past_of([1, 2, 3, 5])[0]
    assert past_of([9, 2, 3, 4, 5, 6, 7, 8])[1] != past_of([1, 2, 3, 4, 5, 6, 7, 8])[1], "all before counts"


@pytest.mark.parametrize(
    "other",
    [
        past_of(range(8)),
        past_of(range(8), ("b", 1.0, 0)),
        past_of(range(8), ("a", 0.5, 0)),
        past_of(range(8), ("a", 1.0, 0), ("b", 1.0, 0)),
        past_of(range(8), ("a", 1.0, 0), salt="tenant"),
        past_of(range(8), ("a", 1.0, 2)),
    ],
)
def test_another_identity_shares_no_block(other: list[bytes]) -> None:
    assert not set(past_of(range(8), ("a", 1.0, 0))) & set(other)


def test_a_sum_is_the_same_in_either_order() -> None:
    one, two = ("a", 0.5, 0), ("b", 1.0, 0)
    assert past_of(range(8), one, two) == past_of(range(8), two, one)


def test_before_its_invocation_an_adapter_s_blocks_are_the_base_s_and_none_after_it() -> None:
    base = past_of(range(16))
    activated = past_of(range(16), ("a", 1.0, 6))
    assert activated[:1] == base[:1]
    assert not set(activated[1:]) & set(base[1:])
    assert past_of(range(16), ("a", 1.0, NEVER)) == base
    assert past_of(range(16), ("a", 1.0, 8))[1] != activated[1], "where it begins within a block counts"


def test_of_what_was_used_least_recently_the_end_of_a_sequence_goes_first() -> None:
    recent = Recent()
    recent.put([b"a", b"ab", b"abc"], [0, 1, 2])
    recent.put([b"x"], [3])
    assert recent.known([b"a", b"ab", b"none", b"abc"]) == [0, 1]
    assert [recent.pop() for _ in range(4)] == [2, 3, 1, 0]
    assert recent.known([b"a"]) == []


# where keys and values lie


class Store:
    """Keys and values of sequences, each token's with a number for values.

    Args:
        pages: or else extents.
        tokens: that running sequences may have.
        kept: that extents keep beside them.
    """

    def __init__(self, *, pages: bool, tokens: int, kept: int) -> None:
        self.pages = pages
        family = Family(LAYERS, (None, None), softcap=False)
        longest, dtype = tokens, torch.float32
        places = open_places(family, pages=pages, tokens=tokens, longest=longest, dtype=dtype, device=CPU, kept=kept)
        self.kv: Any = places.kv

    def _layers(self, place: Any) -> list[torch.Tensor]:
        """Keys and values of each layer, [heads, tokens, features] each, as they lie or as a copy."""
        if not self.pages:
            return [layer for side in place.sides for layer in side]
        at = torch.tensor(place.slots(0, place.capacity))
        return [layer.flatten(0, 1)[at].transpose(0, 1) for layer in (*self.kv.keys, *self.kv.values)]

    def write(self, place: Any, values: Sequence[int], start: int) -> None:
        numbers = torch.tensor([*values], dtype=torch.float32)[:, None]
        if not self.pages:
            for layer in self._layers(place):
                layer[:, start : start + len(values)] = numbers
            return
        at = torch.tensor(place.slots(start, start + len(values)), dtype=torch.int64)
        for layer in (*self.kv.keys, *self.kv.values):
            layer.flatten(0, 1)[at] = numbers[:, :, None]

    def read(self, place: Any, tokens: int) -> list[int]:
        layers = [layer[:, :tokens] for layer in self._layers(place)]
        first = layers[0][0, :, 0]
        assert all(bool((layer == first[None, :, None]).all()) for layer in layers), "of one sequence in every layer"
        return [int(value) for value in first.tolist()]


@pytest.mark.parametrize("pages", [False, True])
def test_random_sequences_find_their_own_keys_and_values_or_none(*, pages: bool) -> None:
    chosen = random.Random(7)
    block = PAGE if pages else BLOCK
    store = Store(pages=pages, tokens=12 * PAGE, kept=20 * BLOCK)
    running: list[tuple[Any, list[bytes], list[int]]] = []
    found = missed = 0
    for _ in range(600):
        if running and (chosen.random() < 0.45 or len(running) > 4):
            place, keys, values = running.pop(chosen.randrange(len(running)))
            assert store.read(place, len(values)) == values, "whoever came and went meanwhile"
            store.kv.keep(place, keys)
            store.kv.release(place)
            continue
        blocks = chosen.randint(1, 3)
        who = chosen.randrange(4)
        texts = [chosen.randrange(2) for _ in range(blocks)]
        tokens = [text for text in texts for _ in range(block)]
        keys = past_of(tokens, (str(who), 1.0, 0), block=block)
        values = [
            who * 1000 + int("".join(map(str, texts[: at // block + 1])), 2) * 10 + at // block
            for at in range(len(tokens))
        ]
        place = store.kv.reserve(len(tokens) + 1, keys)
        if place is None:
            continue
        assert place.known % block == 0
        assert store.read(place, place.known) == values[: place.known], "nobody else's, nor another text's"
        found, missed = found + place.known, missed + len(tokens) - place.known
        store.write(place, values[place.known :], place.known)
        running.append((place, keys, values))
    for place, keys, _ in running:
        store.kv.keep(place, keys)
        store.kv.release(place)
    assert store.kv.reserved == 0
    assert found > missed / 4 > 0, "it came up"
    if pages:
        assert store.kv.reserve(12 * PAGE) is not None, "what is only kept makes room"


def test_pages_that_somebody_has_stay_and_others_go_the_least_recently_used_first() -> None:
    store = Store(pages=True, tokens=4 * PAGE, kept=1)
    texts = {name: past_of([number] * PAGE, block=PAGE) for number, name in enumerate("abc")}
    for number, name in enumerate("abc"):
        place = store.kv.reserve(PAGE, texts[name])
        store.write(place, [number] * PAGE, 0)
        store.kv.keep(place, texts[name])
        store.kv.release(place)
    shared = [store.kv.reserve(PAGE + 1, texts["a"]) for _ in range(2)]
    assert [place.known for place in shared] == [PAGE, PAGE]
    assert shared[0].numbers[0] == shared[1].numbers[0], "one page for both"
    assert store.kv.reserved == 3 * PAGE
    assert store.kv.reserve(PAGE, texts["b"]) is None or store.kv.reserve(PAGE, texts["b"]) is None
    store.kv.release(shared[0])
    assert store.read(shared[1], PAGE) == [0] * PAGE
    assert store.kv.reserve(2 * PAGE) is None, "a page that is read is nobody's room"


# whole answers


@pytest.fixture
def long_base(make_base: BaseFactory, tmp_path: Path) -> Callable[[str], Path]:
    """A tiny base that takes texts of several pages."""

    def make(family: str) -> Path:
        directory = tmp_path / family
        shutil.copytree(make_base(family), directory)
        config = json.loads((directory / "config.json").read_text())
        (directory / "config.json").write_text(json.dumps(config | {"max_position_embeddings": 1024}))
        return directory

    return make


def known_tokens(engine: Any, asked: Sequence[Generate]) -> tuple[dict[str, list[int]], dict[str, int]]:
    """The answers to requests that come at once, and how much of each prompt was known."""
    answers: dict[str, list[int]] = {}
    known: dict[str, int] = {}
    for one in asked:
        engine.handle(one)
    while engine.engine.busy:
        for event in engine.step():
            if isinstance(event, Generated):
                assert event.fault is None, event.fault
                answers.setdefault(event.request, []).extend(event.tokens)
                known[event.request] = known.get(event.request, 0) + event.known
    return answers, known


@pytest.mark.parametrize(
    ("family", "pages"), [("llama", False), ("llama", True), ("gemma3", False), ("gemma3", True), ("gpt_oss", False)]
)
def test_answers_are_those_of_an_engine_that_keeps_nothing(  # windows and sinks among them
    family: str, pages: bool, long_base: Any, make_adapter: Any, in_process: Any
) -> None:
    base = long_base(family)
    budgets = Budgets(pages=pages)
    keeps, plain = in_process(base, budgets), in_process(base, budgets, prefix_cache=False)
    adapters = {
        "one": make_adapter("one", base=base),
        "two": make_adapter("two", base=base, r=4),
        "activated": make_adapter("activated", base=base, alora_invocation_tokens=[2, 5]),
    }
    for engine in (keeps, plain):
        for digest, directory in adapters.items():
            assert isinstance(engine.mount(digest, directory), Mounted)
    chosen, block = random.Random(3), PAGE if pages else BLOCK
    whose = [
        (),
        (("one", 1.0),),
        (("one", 0.5),),
        (("two", 1.0),),
        (("one", 1.0), ("two", 0.25)),
        (("activated", 1.0),),
    ]
    texts = [[chosen.randrange(3, 250) for _ in range(2 * block)] for _ in range(2)]
    hits = 0
    chats: list[tuple[Any, list[int]]] = []
    for turn in range(5):
        asked = []
        for number in range(4):
            if chats and chosen.random() < 0.4:
                who, text = chats.pop(chosen.randrange(len(chats)))
            else:
                who, text = chosen.choice(whose), chosen.choice(texts)[: chosen.randrange(block, 2 * block + 1)]
            text = [*text, *chosen.choice([[2, 5], [7], []]), *(chosen.randrange(3, 250) for _ in range(5))]
            served = tuple(ServedAdapter(digest, weight) for digest, weight in who)
            salt = chosen.choice(["", "", "tenant"])
            asked.append(Generate(f"{turn}-{number}", text, 6, served, Sampling(temperature=0), salt=salt))
        answers, known = known_tokens(keeps, asked)
        expected, nothing = known_tokens(plain, asked)
        assert answers == expected
        assert not any(nothing.values())
        assert all(known[one.request] % block == 0 and known[one.request] < len(one.prompt) for one in asked)
        hits += sum(bool(tokens) for tokens in known.values())
        chats += [
            (tuple((a.digest, a.weight) for a in one.adapters), one.prompt + answers[one.request]) for one in asked
        ]
        chats = [(who, text) for who, text in chats if len(text) < 900 - 2 * block]
    assert hits >= 4


def test_a_chat_that_goes_on_computes_its_new_tokens_alone(tiny_base: Path, in_process: Any) -> None:
    engine = in_process(tiny_base)
    prompt = [256, *range(40)]
    answers, known = known_tokens(engine, [Generate("first", prompt, 24, (), Sampling(temperature=0))])
    assert known == {"first": 0}
    text = [*prompt, *answers["first"], 9, 9]
    _, known = known_tokens(engine, [Generate("second", text, 2, (), Sampling(temperature=0))])
    assert known == {"second": (len(prompt) + 24 - 1) // BLOCK * BLOCK}, "but for what fills no block"
    _, known = known_tokens(engine, [Generate("again", text[: 3 * BLOCK], 2, (), Sampling(temperature=0))])
    assert known == {"again": 2 * BLOCK}, "the last token is computed: its logits are asked for"


def test_neither_another_salt_nor_another_version_of_an_adapter_reads_what_one_has_computed(
    tiny_base: Path, make_adapter: Any, in_process: Any
) -> None:
    engine = in_process(tiny_base)
    prompt = [256, *range(40)]

    def known(name: str, digest: str, salt: str = "") -> int:
        asked = Generate(name, prompt, 2, (ServedAdapter(digest, 1.0),), Sampling(temperature=0), salt=salt)
        return known_tokens(engine, [asked])[1][name]

    assert isinstance(engine.mount("v1", make_adapter("v1")), Mounted)
    assert [known("a", "v1"), known("b", "v1"), known("c", "v1", "tenant")] == [0, 2 * BLOCK, 0]
    engine.handle(Unmount("v1"))
    engine.step()
    assert isinstance(engine.mount("v2", make_adapter("v2")), Mounted)
    assert [known("d", "v2"), known("e", "v2")] == [0, 2 * BLOCK], "swapped under one name: another digest"


def test_what_overflowed_is_not_kept_nor_what_has_virtual_tokens(
    tiny_base: Path, make_adapter: Any, in_process: Any
) -> None:
    engine = in_process(tiny_base)
    assert isinstance(engine.mount("good", make_adapter("good")), Mounted)
    huge = Generate("huge", [256, *range(40)], 2, (ServedAdapter("good", 1e30),), Sampling(temperature=0))
    for _ in range(2):
        engine.handle(huge)
        events = [event for _ in range(3) for event in engine.step() if isinstance(event, Generated)]
        assert [(event.finish, event.known) for event in events] == [("error", 0)]
    kv = engine.engine.serving.runner.kv
    assert kv.reserve(50, past_of(huge.prompt, ("good", 1e30, 0), block=BLOCK)).known == 0
