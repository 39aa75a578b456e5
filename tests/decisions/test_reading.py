"""How much of bodies is held at a time, and for how long."""

from __future__ import annotations

import asyncio
import gzip
from collections.abc import AsyncIterator
from types import SimpleNamespace
from typing import Any

import pytest
from graft_runtime.errors import GraftError
from graft_runtime.http import reading
from graft_runtime.http.reading import SMALL_BODY_BYTES, Bodies

MIB = 1 << 20


def request(*chunks: bytes, length: str | None = None, ends: bool = True, coding: str | None = None) -> Any:
    async def stream() -> AsyncIterator[bytes]:
        for chunk in chunks:
            yield chunk
        if not ends:
            await asyncio.Event().wait()

    headers = {"content-length": length, "content-encoding": coding}
    return SimpleNamespace(stream=stream, headers={name: value for name, value in headers.items() if value is not None})


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
        with pytest.raises(GraftError, match="not whole after 0"):
            async with bodies.read(request(bytes(MIB), ends=False)):
                pass


async def test_bodies_that_come_for_long_make_way_for_one_that_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = Bodies(2 * MIB, 4 * MIB)

    async def read(body: Any) -> int:
        async with bodies.read(body) as content:
            return len(content)

    slow = [asyncio.create_task(read(request(bytes(2 * MIB), ends=False))) for _ in range(2)]
    await asyncio.sleep(0)
    with pytest.raises(GraftError) as caught:
        await read(request(bytes(2 * MIB)))
    assert caught.value.code == "Overloaded", "they have just begun"
    monkeypatch.setattr(reading, "PATIENT_SECONDS", -1.0)
    assert await read(request(bytes(2 * MIB))) == 2 * MIB
    with pytest.raises(GraftError, match="not whole after"):
        await slow[0]
    assert not slow[1].done(), "no more make way than must"
    slow[1].cancel()
    await asyncio.gather(*slow, return_exceptions=True)
    async with bodies.read(request(bytes(2 * MIB))), bodies.read(request(bytes(2 * MIB))):
        pass


@pytest.mark.parametrize("size", [0, 1, MIB])
async def test_a_packed_body_is_unpacked(size: int) -> None:
    content = bytes(range(256)) * (size // 256) + b"x" * (size % 256)
    packed = gzip.compress(content)
    pieces = [packed[at : at + 7] for at in range(0, len(packed), 7)]
    async with Bodies(MIB, MIB).read(request(*pieces, coding="GZIP")) as read:
        assert read == content


async def test_a_packed_body_counts_by_what_is_in_it() -> None:
    bomb = gzip.compress(bytes(64 * MIB))
    assert len(bomb) < 65 << 10
    bodies = Bodies(2 * MIB, MIB)
    with pytest.raises(GraftError) as caught:
        async with bodies.read(request(bomb, coding="gzip")):
            pass
    assert caught.value.code == "Overloaded", "no more than there is room for is unpacked"
    with pytest.raises(GraftError, match=f"more than {MIB} bytes"):
        async with Bodies(MIB, 2 * MIB).read(request(bomb, coding="gzip")):
            pass


@pytest.mark.parametrize(
    ("body", "coding", "says"),
    [
        (b"{}", "gzip", "no gzip"),
        (gzip.compress(bytes(999), mtime=0)[:-9], "gzip", "no gzip"),
        (gzip.compress(b"{}", mtime=0) + b"more", "gzip", "no gzip"),
        (b"{}", "br", "`br`"),
        (b"{}", "gzip, gzip", "`gzip, gzip`"),
    ],
)
async def test_what_can_not_be_unpacked_is_told_so(body: bytes, coding: str, says: str) -> None:
    with pytest.raises(GraftError, match=says) as caught:
        async with Bodies(MIB, MIB).read(request(body, coding=coding)):
            pass
    assert caught.value.code == "InvalidRequest"
    assert caught.value.hint
