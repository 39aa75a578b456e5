"""What others send is read with bounds: bytes, and how deep JSON is nested."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Sequence
from typing import Any

import pytest
from graft_operator.clients.bodies import (
    MAX_CUT_BYTES,
    MAX_DEPTH,
    TOO_DEEP,
    TooLargeError,
    read_body,
    read_json,
    read_lines,
)


class Arriving:
    """Stands in for the stream of an answer; notes how much was read."""

    def __init__(self, pieces: Sequence[bytes]) -> None:
        self._pieces = pieces
        self.read = 0

    async def pieces(self) -> AsyncIterator[bytes]:
        for piece in self._pieces:
            self.read += len(piece)
            yield piece


async def test_a_body_is_read_no_further_than_it_may_be_long() -> None:
    endless = Arriving([b"x" * 1000] * 1000)
    with pytest.raises(TooLargeError):
        await read_body(endless.pieces(), 5000)
    assert endless.read == 6000
    assert await read_body(Arriving([b"ab", b"c"]).pieces(), 3) == b"abc"


@pytest.mark.parametrize(
    ("pieces", "lines"),
    [
        pytest.param([b"a\nb\n"], [b"a", b"b"], id="whole"),
        pytest.param([b"a", b"b\nc"], [b"ab", b"c"], id="cut-anywhere"),
        pytest.param([b"a\n\n", b"\nb\n"], [b"a", b"b"], id="empty-ones"),
        pytest.param([b"a\n", b"x" * 9, b"x" * 9, b"x\nb\n"], [b"a", None, b"b"], id="one-too-long"),
        pytest.param([b"x" * 30], [None], id="the-last-too-long"),
    ],
)
async def test_lines_of_a_watch(pieces: list[bytes], lines: list[bytes | None]) -> None:
    assert [line async for line in read_lines(Arriving(pieces).pieces(), 10)] == lines


def nested(depth: int, kind: str = "map") -> bytes:
    start, end = (b'{"a":', b"}") if kind == "map" else (b"[", b"]")
    return start * depth + b'"x"' + end * depth


@pytest.mark.parametrize("kind", ["map", "list"])
@pytest.mark.parametrize("depth", [1, MAX_DEPTH])
def test_json_as_deep_as_kubernetes_has_it_is_read_whole(kind: str, depth: int) -> None:
    content = nested(depth, kind)
    assert read_json(content) == json.loads(content)


@pytest.mark.parametrize("kind", ["map", "list"])
@pytest.mark.parametrize("depth", [201, 1_200, 9_000])
def test_what_lies_too_deep_is_left_out_and_the_rest_is_read(kind: str, depth: int) -> None:
    found = read_json(b'{"deep": ' + nested(depth, kind) + b', "text": "]}\\"{[", "after": [1]}')
    assert (found["text"], found["after"]) == (']}"{[', [1])
    assert depth_of(found["deep"]) == (MAX_DEPTH - 1, TOO_DEEP)


def depth_of(value: Any) -> tuple[int, Any]:
    depth = 0
    while isinstance(value, dict | list):
        value = value["a"] if isinstance(value, dict) else value[0]
        depth += 1
    return depth, value


@pytest.mark.parametrize("content", [b"", b"{", b'{"a": }', nested(1200)[:-1], b'{"a": ' + nested(201) + b" x"])
def test_what_is_no_json_is_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"line|column"):
        read_json(content)


def test_what_is_deep_and_large_is_refused_for_it_would_take_seconds() -> None:
    with pytest.raises(ValueError, match="recursion"):
        read_json(b"[" + nested(201) + b", " + b"[]," * (MAX_CUT_BYTES // 3) + b"1]")
