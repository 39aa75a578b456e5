"""What a stranger's tokenizer takes, it takes of a process of its own: the pod's lives and encodes the next text."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.tokenizing.encoding import Encoder, ForeignTokenizer
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from tests.support import cases
from tests.support.bases import save_tokenizer

RANDOM = cases.PLANNED["tokenizers"]
"""That are judged and run."""


def letters() -> Tokenizer:
    return Tokenizer(models.BPE({"a": 0, "b": 1, "ab": 2}, [("a", "b")]))


def slow() -> Tokenizer:
    """Quadratic in the length of its longest piece."""
    pieces = [("a" * length, -1.0) for length in range(1, 1025)]
    return Tokenizer(models.Unigram([("<unk>", 0.0), *pieces], 0))


def growing() -> Tokenizer:
    fast = letters()
    fast.normalizer = normalizers.Sequence([normalizers.Replace("a", "a" * 64)] * 5)
    return fast


def doubling() -> Tokenizer:
    fast = letters()
    level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    fast.pre_tokenizer = pre_tokenizers.Sequence([level] * 40)
    return fast


@pytest.fixture(scope="module")
def encoder() -> Iterator[Encoder]:
    encoder = Encoder(seconds=1)
    yield encoder
    encoder.close()


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The tokenizer of a base alone."""
    directory = tmp_path_factory.mktemp("base")
    save_tokenizer(directory)
    return directory


@pytest.mark.parametrize(
    ("fast", "text"), [(slow(), "a" * 65_536), (growing(), "a"), (doubling(), "é")], ids=["slow", "growing", "doubling"]
)
def test_one_that_takes_too_much_is_unsafe_and_the_next_text_is_encoded(
    encoder: Encoder, fast: Tokenizer, text: str
) -> None:
    foreign, other = ForeignTokenizer(fast), ForeignTokenizer(letters())
    for _ in range(2):
        with pytest.raises(GraftError, match="takes more time or memory for a text than one may") as caught:
            encoder.encode(foreign, text, special=False)
        assert caught.value.code == "UnsafeFile"
    assert "a moment ago" in caught.value.message
    assert encoder.encode(other, "aab", special=False).ids == [0, 2]


def test_it_says_what_the_library_says(encoder: Encoder, base: Path) -> None:
    fast = Tokenizer.from_file(str(base / "tokenizer.json"))
    foreign = ForeignTokenizer(fast)
    for special in (True, False):
        for text in ("", "hello  world", "<s>Über 😀</s>"):
            assert (
                encoder.encode(foreign, text, special=special).ids == fast.encode(text, add_special_tokens=special).ids
            )
    pair = encoder.encode(foreign, ("hello", "world"), special=True)
    both = fast.encode("hello", "world")
    assert (pair.ids, pair.type_ids) == (both.ids, both.type_ids)
    encoder.close()
    assert encoder.encode(foreign, "again", special=False).ids == fast.encode("again").ids
    failing = ForeignTokenizer(Tokenizer(models.WordLevel({"a": 0}, unk_token="nowhere")))
    with pytest.raises(RuntimeError, match="WordLevel"):
        encoder.encode(failing, "zebra", special=False)


def test_random_tokenizers_end_no_process(base: Path) -> None:
    """Those that the checks let through are run; one that hung or crashed would leave no answer."""
    command = [sys.executable, "-m", "tests.support.random_tokenizers", str(base), str(RANDOM), "1"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=True)
    counts = json.loads(done.stdout)
    assert sum(counts.values()) == RANDOM
    cases.tried("tokenizers", RANDOM)
    assert min(counts[how] for how in ("ran", "refused")) > RANDOM / 20, counts
