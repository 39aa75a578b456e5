"""A base without a tokenizer.json: a child process writes one."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.tokenizing import conversion
from graft_runtime.tokenizing.conversion import convert, converted


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


def write(directory: Path, model_type: str, files: dict[str, bytes]) -> None:
    directory.mkdir()
    (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
    for name, content in files.items():
        (directory / name).write_bytes(content)


def sentencepiece() -> bytes:
    from sentencepiece import SentencePieceTrainer

    made = io.BytesIO()
    corpus = iter(["hello world, this is a text of words"] * 20)
    SentencePieceTrainer.train(
        sentence_iterator=corpus, model_writer=made, vocab_size=60, hard_vocab_limit=False, minloglevel=2
    )
    return made.getvalue()


async def test_a_tokenizer_is_converted(slow: Path, tmp_path: Path) -> None:
    await convert(slow, tmp_path / "made")
    assert {path.name for path in (tmp_path / "made").iterdir()} == {"tokenizer.json", "tokenizer_config.json"}
    assert "h" in json.loads((tmp_path / "made" / "tokenizer.json").read_text())["model"]["vocab"]


async def test_a_checkpoint_without_a_tokenizer(tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    with pytest.raises(GraftError, match=r"no tokenizer: its checkpoint holds none of tokenizer.json, ") as caught:
        await convert(tmp_path / "none", tmp_path / "made")
    assert caught.value.code is ErrorCode.NOT_A_MODEL
    assert not (tmp_path / "made").exists()


async def test_one_that_can_t_be_converted(tmp_path: Path) -> None:
    write(tmp_path / "broken", "llama", {"tokenizer.model": b"junk" * 100})
    with pytest.raises(GraftError, match=r"the tokenizer of broken can't be converted: .*tokenizer.model") as caught:
        await convert(tmp_path / "broken", tmp_path / "made" / "it")
    assert caught.value.code is ErrorCode.NOT_A_MODEL
    assert not (tmp_path / "made" / "it").exists()
    assert not (tmp_path / "made" / "it.partial").exists()


@pytest.mark.parametrize(
    ("model_type", "file", "what"),
    [
        ("llama", "tokenizer.model", "ValueError: tokenizer.model is no model of SentencePiece"),
        ("siglip", "spiece.model", "SiglipTokenizer of Transformers has no form in the tokenizers library"),
        ("xglm", "sentencepiece.bpe.model", "XGLMTokenizer of Transformers reads none of its vocabulary's files"),
    ],
)
def test_what_is_wrong_is_named(model_type: str, file: str, what: str, tmp_path: Path) -> None:
    content = b"junk" * 100 if model_type == "llama" else sentencepiece()
    write(tmp_path / "base", model_type, {file: content})
    fault = converted(tmp_path / "base", tmp_path / "made").fault
    assert fault is not None
    assert fault.code is ErrorCode.NOT_A_MODEL
    assert f"the tokenizer of base can't be converted: ValueError: {what.removeprefix('ValueError: ')}" in fault.message
    assert "hint: add a tokenizer.json" in fault.message


async def test_what_earlier_conversions_left_is_removed(slow: Path, tmp_path: Path) -> None:
    left = tmp_path / "made" / "earlier.partial"
    left.mkdir(parents=True)
    (left / "tokenizer.json").write_text("{")
    await convert(slow, tmp_path / "made" / "it")
    assert [path.name for path in (tmp_path / "made").iterdir()] == ["it"]


async def test_a_conversion_without_end_or_memory(slow: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(conversion, "CONVERSION_SECONDS", 0.2)
    with pytest.raises(GraftError, match=r"the conversion of the tokenizer of slow took over 0.2 s") as caught:
        await convert(slow, tmp_path / "made")
    assert caught.value.code.passes
    assert not (tmp_path / "made").exists()
    assert not (tmp_path / "made.partial").exists()


@pytest.mark.parametrize("file", ["qwen.tiktoken", "tiktoken.model", "tokenizer.model"])
async def test_a_vocabulary_of_tiktoken_is_named(file: str, tmp_path: Path) -> None:
    """Qwen 1, Kimi, and GLM-4 or Meta's own Llama 3: it lacks the pattern that splits text, so any other is a guess."""
    write(tmp_path / "base", "llama", {file: b"IQ== 0\nIg== 1\nIw== 2\n"})
    with pytest.raises(GraftError, match=f"in {file}, a vocabulary of tiktoken") as caught:
        await convert(tmp_path / "base", tmp_path / "made")
    assert caught.value.code is ErrorCode.NOT_A_MODEL
    assert "add a tokenizer.json that makes the same tokens" in str(caught.value)
    assert not (tmp_path / "made").exists()
