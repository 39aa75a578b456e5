"""How much of bodies is held at a time, and for how long."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.http import reading
from graft_runtime.http.reading import SMALL_BODY_BYTES, Bodies

MIB = 1 << 20


def request(*chunks: bytes, length: str | None = None, ends: bool = True) -> Any:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if not ends:
            await asyncio.Event().wait()

    return SimpleNamespace(stream=stream, headers={"content-length": length} if length is not None else {})


async def test_what_is_held_is_given_back() -> None:
    bodies = Bodies(2 * MIB, 3 * MIB)
    for _ in range(3):
        async with bodies.read(request(bytes(MIB), bytes(MIB))) as content:
            assert len(content) == 2 * MIB


async def test_one_body_too_many_is_turned_away_and_small_ones_never_are() -> None:
    bodies = Bodies(2 * MIB, 3 * MIB)
    large = request(bytes(2 * MIB))
    async with bodies.read(large):
        with pytest.raises(GraftError) as caught:
            async with bodies.read(large):
                pass
        assert caught.value.code == "Overloaded"
        async with bodies.read(request(bytes(SMALL_BODY_BYTES))) as content:
            assert len(content) == SMALL_BODY_BYTES
    async with bodies.read(large):
        pass


@pytest.mark.parametrize("body", [request(bytes(MIB), b"1"), request(length=str(MIB + 1), ends=False)])
async def test_a_body_over_the_limit_is_not_read_on(body: Any) -> None:
    with pytest.raises(GraftError, match=f"more than {MIB} bytes"):
        async with Bodies(MIB, MIB).read(body):
            pass


async def test_a_body_that_stops_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "BODY_SECONDS", 0.01)
    bodies = Bodies(2 * MIB, MIB)
    for _ in range(3):
        with pytest.raises(GraftError, match=r"not whole after 0\.01 s"):
            async with bodies.read(request(bytes(MIB), ends=False)):
                pass
