"""Events as readers of lines take them, and streams in which nothing comes for long."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import json
import weakref
from collections.abc import AsyncIterator, Iterator
from typing import Any, NoReturn

import pytest
from graft_runtime.http import streaming
from graft_runtime.http.streaming import DONE, ClientGoneError, EventStream, event, unless

LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x7f\x85\x9b\u2028\u2029"
"""What some reader takes for the end of a line, or a terminal for a command."""


def test_an_event_is_one_line_to_every_reader() -> None:
    text = f"a{LINE_ENDS}b\r\n\U0001f600é"
    content = event({"text": text})
    assert content.decode().splitlines() == [content.decode().strip(), ""]
    assert json.loads(content.removeprefix(b"data: ")) == {"text": text}
    assert "\U0001f600é" in content.decode(), "all else is sent as it is"


async def test_a_silent_stream_sends_comments_until_something_comes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streaming, "SILENT_SECONDS", 0.001)
    comments = asyncio.Event()
    sent: list[bytes] = []

    async def events() -> AsyncIterator[bytes]:
        await comments.wait()
        yield event({"a": 1})
        yield DONE

    async def send(message: Any) -> None:
        sent.append(message.get("body", b""))
        if sent.count(b": waiting\n\n") == 3:
            comments.set()

    async def receive() -> Any:
        await asyncio.Event().wait()

    async with asyncio.timeout(10):
        await EventStream(events(), {}, lambda: None)({"type": "http"}, receive, send)
    assert [content for content in sent if content and not content.startswith(b":")] == [event({"a": 1}), DONE]


@pytest.fixture
def uncollected() -> Iterator[None]:
    """Objects that hold each other stay, until the test ends."""
    gc.disable()
    yield
    gc.enable()


class Body:
    """What a request brought."""


@pytest.mark.usefixtures("uncollected")
@pytest.mark.parametrize("goes", [True, False], ids=["the client goes", "the request fails"])
async def test_a_request_that_ends_early_is_let_go_of_at_once(goes: bool) -> None:
    async def ends(when: bool) -> NoReturn:
        if not when:
            await asyncio.Event().wait()
        raise ClientGoneError

    async def ask() -> weakref.ref[Body]:
        body = Body()
        with contextlib.suppress(ClientGoneError):
            await unless(ends(not goes), ends(goes))
        return weakref.ref(body)

    body = await ask()
    await asyncio.sleep(0)
    assert body() is None
