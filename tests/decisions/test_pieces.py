"""Text that comes in pieces equals the text at once, and nothing past a stop string gets out."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from graft_runtime.tokenizing.pieces import Detokenizer, StopStrings
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

CHARACTERS = st.text(st.sampled_from("ab é€😀\n"), max_size=200)


def bytewise(ids: Sequence[int]) -> str:
    """Tokens are bytes, as in byte-level BPE."""
    return bytes(ids).decode(errors="replace")


def run_fallback(ids: Sequence[int]) -> str:
    """As SentencePiece's byte fallback: a run that is no UTF-8 shows one replacement a byte."""
    try:
        return bytes(ids).decode()
    except UnicodeDecodeError:
        return "\ufffd" * len(ids)


def leading_space_lost(ids: Sequence[int]) -> str:
    """As SentencePiece: each token is a word with its space, and the first space of a text is dropped."""
    return "".join(f" {token}" for token in ids)[1:]


def pieces(detokenizer: Detokenizer, ids: Sequence[int], size: int = 1) -> list[str]:
    found = [detokenizer.push(ids[start : start + size]) for start in range(0, len(ids), size)]
    return [*found, detokenizer.finish()]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(CHARACTERS, st.integers(1, 7))
def test_characters_come_whole(text: str, size: int) -> None:
    got = pieces(Detokenizer(bytewise), text.encode(), size)
    assert "".join(got) == text
    assert not any("\ufffd" in piece for piece in got)


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.binary(max_size=60), st.integers(1, 7))
def test_broken_characters_come_as_they_would_at_once(content: bytes, size: int) -> None:
    assert "".join(pieces(Detokenizer(bytewise), content, size)) == bytewise(content)


@pytest.mark.parametrize("character", ["é", "€", "😀"])
def test_byte_fallback_waits_for_the_whole_character(character: str) -> None:
    got = pieces(Detokenizer(run_fallback), character.encode())
    assert [piece for piece in got if piece] == [character]


def test_an_answer_that_goes_on_mid_text_keeps_its_first_space() -> None:
    assert "".join(pieces(Detokenizer(leading_space_lost, before=[1, 2]), [3, 4])) == " 3 4"
    assert "".join(pieces(Detokenizer(leading_space_lost), [3, 4])) == "3 4"


def test_the_work_for_a_token_does_not_grow_with_the_text() -> None:
    longest = 0

    def decode(ids: Sequence[int]) -> str:
        nonlocal longest
        longest = max(longest, len(ids))
        return bytewise(ids)

    pieces(Detokenizer(decode), b"a" * 2000 + b"\xff" * 2000)
    assert longest < 100


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text("ab/", max_size=60), st.lists(st.text("ab/", min_size=1, max_size=4), max_size=3), st.integers(1, 5))
def test_text_ends_before_the_stop_string_that_is_complete_first(text: str, stops: list[str], size: int) -> None:
    ends = [(place + len(stop), place) for stop in stops if (place := text.find(stop)) >= 0]
    cut = min(ends)[1] if ends else len(text)
    checker, got = StopStrings(stops), ""
    for start in range(0, len(text), size):
        got += checker.push(text[start : start + size])
        assert text[:cut].startswith(got), "nothing gets out that might begin a stop string"
    got += checker.finish()
    assert got == text[:cut]
    assert checker.hit == any(stop in text for stop in stops)
