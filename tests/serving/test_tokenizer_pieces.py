"""Text that comes in pieces is what the tokenizers library decodes of the whole, at every cut."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
from graft_runtime.tokenizing.pieces import Detokenizer, StopStrings
from graft_runtime.tokenizing.tokenizer import Tokenizer
from tokenizers import AddedToken, decoders, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Fast

CORPUS = (
    "plain words, and more words.",
    "你好,世界",
    "😀😀😀 a 😀 b",
    "👩\u200d👩\u200d👧",
    "日本語です",
    "привет мир",
    "한국어 é ñ ß",
    "ສະບາຍດີ",
    "\n\n\tdef f():\n    return '€'\n",
    " two  spaces ",
    "\u2028 \u0085 \x00 \x1b \ufeff \ufffd",
)
SPECIAL = ("<s>", "</s>", "<|tool|>")
LETTERS = "abcdefghijklmnopqrstuvwxyz.,'() "
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]


def _with_special(fast: Fast) -> Fast:
    fast.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return fast


def byte_level() -> Fast:
    vocabulary = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[]))
    fast.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    fast.decoder = decoders.ByteLevel()
    return _with_special(fast)


def _fallback_decoder(fast: Fast, *, strip: bool) -> Fast:
    stripped = [decoders.Strip(content=" ", left=1)] if strip else []
    fast.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *stripped])
    return _with_special(fast)


def llama_2() -> Fast:
    vocabulary = {token: index for index, token in enumerate(["<unk>", *BYTES, *LETTERS.replace(" ", "▁"), "好"])}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    return _fallback_decoder(fast, strip=True)


def gemma() -> Fast:
    vocabulary = {token: index for index, token in enumerate(["<unk>", *BYTES, *LETTERS.replace(" ", "▁"), "好"])}
    fast = Fast(models.BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    fast.normalizer = normalizers.Replace(" ", "▁")
    return _fallback_decoder(fast, strip=False)


def unigram_with_bytes() -> Fast:
    pieces = [("<unk>", 0.0), *((token, -9.0) for token in BYTES), ("▁", -2.0), ("▁a", -1.5)]
    fast = Fast(models.Unigram([*pieces, *((letter, -3.0) for letter in LETTERS.strip())], 0, byte_fallback=True))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    return _fallback_decoder(fast, strip=True)


def unigram() -> Fast:
    letters = sorted({letter for text in CORPUS for letter in text if not letter.isspace()})
    fast = Fast(models.Unigram([("<unk>", 0.0), ("▁", -2.0), *((letter, -3.0) for letter in letters)], 0))
    fast.pre_tokenizer = pre_tokenizers.Metaspace()
    fast.decoder = decoders.Metaspace()
    return _with_special(fast)


def wordpiece() -> Fast:
    letters = sorted({letter for text in CORPUS for letter in text if not letter.isspace()})
    tokens = ["[UNK]", *letters, *(f"##{letter}" for letter in letters), "and", "##ords", "n't"]
    fast = Fast(models.WordPiece(vocab={token: index for index, token in enumerate(tokens)}, unk_token="[UNK]"))
    fast.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    fast.decoder = decoders.WordPiece()
    return _with_special(fast)


KINDS: tuple[Callable[[], Fast], ...] = (byte_level, llama_2, gemma, unigram_with_bytes, unigram, wordpiece)


@pytest.fixture(params=KINDS, ids=lambda make: make.__name__)
def fast(request: pytest.FixtureRequest) -> Any:
    return request.param()


def streamed(detokenizer: Detokenizer, ids: Sequence[int], size: int) -> Iterator[str]:
    for start in range(0, len(ids), size):
        yield detokenizer.push(ids[start : start + size])
    yield detokenizer.finish()


def assert_every_cut_is_right(fast: Fast, prompt: list[int], ids: list[int]) -> None:
    tokenizer = Tokenizer(fast, {}, "it")
    before = len(fast.decode(prompt))
    for cut in range(len(ids) + 1):
        expected = fast.decode(prompt + ids[:cut])[before:]
        for size in (1, 3, 1000):
            got = "".join(streamed(tokenizer.detokenizer(prompt), ids[:cut], size))
            assert got == expected, (cut, size)


@pytest.mark.parametrize("text", CORPUS)
def test_text_in_pieces_is_the_text_of_the_whole(fast: Fast, text: str) -> None:
    assert_every_cut_is_right(fast, fast.encode("a word").ids, fast.encode(text).ids)
    assert_every_cut_is_right(fast, [], fast.encode(text).ids)


@pytest.mark.parametrize("seed", range(6))
def test_any_tokens_in_any_order(fast: Fast, seed: int) -> None:
    """Broken bytes, and special tokens inside of characters and before words that begin with a space."""
    chance = random.Random(seed)
    special = fast.encode("".join(SPECIAL)).ids
    known = [token for text in CORPUS for token in fast.encode(text).ids]
    ids = [chance.choice(special if chance.random() < 0.15 else known) for _ in range(40)]
    assert_every_cut_is_right(fast, fast.encode("a word").ids, ids)


def test_a_character_made_of_bytes_right_after_the_line_break_of_a_prompt() -> None:
    fast = llama_2()
    prompt = fast.encode("a word\n").ids
    tokenizer = Tokenizer(fast, {}, "it")
    assert "".join(streamed(tokenizer.detokenizer(prompt), fast.encode("😀").ids[1:], 1)) == "😀"
    assert "".join(streamed(tokenizer.detokenizer(prompt), fast.encode("😀").ids[1:3], 1)) == "\ufffd\ufffd"


def test_text_comes_as_soon_as_no_later_token_can_change_it() -> None:
    fast = llama_2()
    detokenizer = Tokenizer(fast, {}, "it").detokenizer(fast.encode("a").ids)
    got = [detokenizer.push([token]) for token in fast.encode("你a好").ids[1:]]
    assert got == ["", "", "", "你a", "好"]


@pytest.mark.parametrize("text", CORPUS)
def test_an_answer_ends_before_its_stop_string_wherever_it_is_cut(fast: Fast, text: str) -> None:
    """Also where the stop string lies across pieces, or special tokens stand inside of it."""
    ids = fast.encode(text).ids
    middle = len(ids) // 2
    ids = [*ids[:middle], *fast.encode("</s>").ids, *ids[middle:]]
    whole = fast.decode(ids)
    stops = {whole[start : start + length] for start in range(1, len(whole)) for length in (1, 2, 5)}
    tokenizer = Tokenizer(fast, {}, "it")
    for stop in stops - {""}:
        for size in (1, 2, 1000):
            cut = StopStrings([stop])
            pieces = [*streamed(tokenizer.detokenizer(), ids, size)]
            assert "".join([*map(cut.push, pieces), cut.finish()]) == whole[: whole.index(stop)], (stop, size)
            assert cut.hit
