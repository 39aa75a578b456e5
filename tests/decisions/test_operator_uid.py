"""The operator runs under a uid that no user database knows, as Kubernetes may start it."""

from __future__ import annotations

import asyncio
import pwd
from collections.abc import Mapping
from typing import Any

import pytest
from graft_operator.clients.access import Access
from graft_operator.clients.cluster import UnavailableError
from graft_operator.kinds import Kind
from graft_operator.loop import handlers
from graft_operator.settings import Settings


async def test_watches_start_under_a_uid_without_an_entry(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_entry(uid: int) -> pwd.struct_passwd:
        raise KeyError(f"getpwuid(): uid not found: {uid}")

    for name in ("LOGNAME", "USER", "LNAME", "USERNAME", "POD_ID"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(pwd, "getpwuid", no_entry)
    started = asyncio.Event()
    stop = asyncio.Event()

    def on_started() -> None:
        started.set()
        stop.set()

    await handlers.watch(
        Settings(namespace="graft-system", runtime_image="graft-runtime:1"),
        access=_no_server,
        feed=_Feed(),
        on_started=on_started,
        stop=stop,
    )
    assert started.is_set()


async def _no_server() -> Access:
    return Access("http://127.0.0.1:9", None, None, None, None, verify=True)


class _Feed:
    """Takes nothing."""

    async def list(self, kind: Kind, namespace: str | None) -> str:
        raise UnavailableError("there is no server")

    def take(self, kind: Kind, event: str, body: Mapping[str, Any]) -> None:
        raise AssertionError
