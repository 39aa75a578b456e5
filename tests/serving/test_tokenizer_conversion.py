"""A base without a tokenizer.json: a child process writes one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing import conversion
from graft_runtime.tokenizing.conversion import convert


@pytest.fixture
def slow(tiny_base: Path, tmp_path: Path) -> Path:
    """The tokenizer of the base as GPT-2's vocab.json and merges.txt."""
    directory = tmp_path / "slow"
    directory.mkdir()
    vocabulary = json.loads((tiny_base / "tokenizer.json").read_text())["model"]["vocab"]
    (directory / "vocab.json").write_text(json.dumps(vocabulary))
    (directory / "merges.txt").write_text("#version: 0.2\n")
    (directory / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "GPT2Tokenizer"}))
    return directory


async def test_a_tokenizer_is_converted(slow: Path, tmp_path: Path) -> None:
    await convert(slow, tmp_path / "made")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert "h" in json.loads((tmp_path / "made" / "tokenizer.json").read_text())["model"]["vocab"]


async def test_one_that_can_t_be_converted(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(GraftError) as caught:
        await convert(tmp_path / "none", tmp_path / "made")
    assert caught.value.code is ErrorCode.NOT_A_MODEL
    assert "the tokenizer of none can't be converted" in caught.value.what
    assert list((tmp_path / "made").iterdir()) == []


async def test_a_conversion_without_end_or_memory(slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "CONVERSION_SECONDS", 0.2)
    with pytest.raises(GraftError, match=r"the conversion of the tokenizer of slow took over 0.2 s") as caught:
        await convert(slow, tmp_path / "made")
    assert caught.value.code.passes
    assert not (tmp_path / "made" / "tokenizer.json").exists()
