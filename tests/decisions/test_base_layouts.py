"""Layouts of base models on disk: exact, or made again."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from graft_runtime.adapters.layout import AttentionShape, BaseLayout, EmbeddingShape, ExpertsShape, LinearShape
from graft_runtime.base.kept_layouts import MAX_KEPT, layout_of_checkpoint
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import GraftError

LAYOUT = BaseLayout(
    "base",
    {"model.b": LinearShape(8, 4, bias=True, transposed=True), "model.a": LinearShape(4, 8)},
    {"model": "Model"},
    {"model.e": EmbeddingShape(320, 8)},
    {"model.n": {"weight": 8, "bias": 8}},
    {"model.x": ExpertsShape(4, {"down_proj": (8, 4)}, interleaved=True)},
    ties={"model.e": "model.a"},
    twins=("model.d",),
    input_embedding="model.e",
    attention=AttentionShape(2, 4, 8),
    resizable=frozenset({"model.e", "model.a"}),
    former={"old": "new"},
    wrapper="model",
    vocabulary=320,
)


class Maker:
    """Makes a layout and counts how often it had to."""

    def __init__(self) -> None:
        self.made = 0

    def __call__(self) -> BaseLayout:
        self.made += 1
        return LAYOUT


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "graft" / "layouts"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "config.json").write_text('{"model_type": "llama"}')
    (tmp_path / "base" / "model.safetensors").touch()
    return tmp_path / "base"


def test_a_layout_is_made_once_and_read_as_it_was(cache: Path, base: Path) -> None:
    make = Maker()
    assert layout_of_checkpoint(base, None, make) == LAYOUT
    kept = layout_of_checkpoint(base, None, make)
    assert (make.made, kept) == (1, LAYOUT)
    assert list(kept.paths) == list(LAYOUT.paths), "errors list modules in the order of the model"
    (file,) = cache.iterdir()
    assert (file.stat().st_mode & 0o777, cache.stat().st_mode & 0o777) == (0o600, 0o700)


def test_errors_call_the_base_as_its_directory_is_called_now(cache: Path, base: Path) -> None:
    layout_of_checkpoint(base, None, Maker())
    assert layout_of_checkpoint(base.rename(base.with_name("other")), None, Maker()).name == "other"


def test_what_decides_is_in_its_name(cache: Path, base: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make = Maker()
    layout_of_checkpoint(base, None, make)
    layout_of_checkpoint(base, Task.SEQ_CLS, make)
    (base / "config.json").write_text('{"model_type": "llama", "num_labels": 3}')
    layout_of_checkpoint(base, None, make)
    monkeypatch.setattr("graft_runtime.base.kept_layouts.version", lambda package: "another")
    layout_of_checkpoint(base, None, make)
    assert make.made == 4


DAMAGES: dict[str, Callable[[Path], object]] = {
    "cut": lambda file: file.write_bytes(file.read_bytes()[:-9]),
    "empty": lambda file: file.write_bytes(b""),
    "other values": lambda file: file.write_bytes(file.read_bytes().replace(b"320", b"321")),
    "another form": lambda file: file.write_text('{"sha256": "", "layout": {}, "more": 1}'),
    "no text": lambda file: file.write_bytes(b"\xff\xfe"),
    "nested": lambda file: file.write_text("[" * 100_000),
    "writable by others": lambda file: file.chmod(0o622),
    "a link": lambda file: file.symlink_to(file.rename(file.with_name("elsewhere"))),
    "a pipe": lambda file: os.mkfifo(file.rename(file.with_name("elsewhere")).with_name(file.name)),
}


@pytest.mark.parametrize("damage", list(DAMAGES))
def test_a_file_that_is_not_ours_as_we_wrote_it_is_made_again(cache: Path, base: Path, damage: str) -> None:
    make = Maker()
    layout_of_checkpoint(base, None, make)
    (file,) = cache.iterdir()
    DAMAGES[damage](file)
    assert layout_of_checkpoint(base, None, make) == LAYOUT
    assert make.made == 2
    assert layout_of_checkpoint(base, None, make) == LAYOUT
    assert make.made == 2, "it is whole again"


def test_a_directory_in_the_place_of_the_file_costs_time_and_nothing_else(cache: Path, base: Path) -> None:
    make = Maker()
    layout_of_checkpoint(base, None, make)
    (file,) = cache.iterdir()
    file.rename(file.with_name("elsewhere"))
    file.mkdir()
    assert layout_of_checkpoint(base, None, make) == layout_of_checkpoint(base, None, make) == LAYOUT
    assert make.made == 3
    assert {path.name for path in cache.iterdir()} == {file.name, "elsewhere"}


def test_a_cache_that_cannot_be_written_costs_time_and_nothing_else(cache: Path, base: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.touch()
    make = Maker()
    assert layout_of_checkpoint(base, None, make) == layout_of_checkpoint(base, None, make) == LAYOUT
    assert make.made == 2


def test_a_layout_that_is_kept_does_not_stand_for_weights(cache: Path, base: Path) -> None:
    layout_of_checkpoint(base, None, Maker())
    (base / "model.safetensors").rename(base / "pytorch_model.bin")
    with pytest.raises(GraftError, match="a pickle"):
        layout_of_checkpoint(base, None, Maker())


def test_few_are_kept(cache: Path, base: Path) -> None:
    for number in range(MAX_KEPT + 3):
        (base / "config.json").write_text(f'{{"number": {number}}}')
        layout_of_checkpoint(base, None, Maker())
    assert len(list(cache.iterdir())) == MAX_KEPT
