"""What keeps the check of one adapter's files from going on for ever."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from graft_runtime.contract.checkpoints import Source
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.pod import preparations
from graft_runtime.pod.catalogue import Artifact
from graft_runtime.pod.preparations import Preparations

from tests.support.waiting import until


async def test_a_check_without_end_is_the_adapter_s_fault_and_the_next_one_is_made(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def check(_: Path, *, name: str, max_rank: int) -> object:
        while name == "endless":
            pass
        return SimpleNamespace(facts="facts")

    async def fetched(*_: object) -> object:
        return SimpleNamespace(directory=tmp_path, bytes=1)

    async def no_token(*_: object) -> None:
        return None

    monkeypatch.setattr(preparations, "CHECK_SECONDS", 0.05)
    monkeypatch.setattr(preparations, "read_adapter_files", check)
    prepared: list[Artifact] = []
    work = Preparations(SimpleNamespace(fetch_until_there=fetched), no_token, 8)  # type: ignore[arg-type]
    for name in ("endless", "good"):
        work.start(Artifact(name, Source(uri="pvc://a/b"), name), Source(uri="pvc://a/b"), prepared.append)
    await until(lambda: len(prepared) == 2)
    faults = {artifact.name: artifact.fault and artifact.fault.code for artifact in prepared}
    assert faults == {"endless": "UnsafeFile", "good": None}


async def test_an_adapter_s_fault_keeps_nothing_of_what_was_read() -> None:
    read: list[weakref.ref[Artifact]] = []

    async def failing(*_: object) -> object:
        archive = Artifact("read", Source(uri="pvc://a/b"), "read")
        read.append(weakref.ref(archive))
        raise GraftError(ErrorCode.CORRUPT, "the archive can't be read") from ValueError(archive)

    async def told(
        _source: object, _kind: object, _digest: str, _name: str, failed: Callable[[GraftError], None]
    ) -> None:
        try:
            await failing()
        except GraftError as error:
            failed(error)

    work = Preparations(SimpleNamespace(fetch_until_there=told), None, 8)  # type: ignore[arg-type]
    artifact, done = Artifact("a", Source(uri="pvc://a/b"), "a"), list[Artifact]()
    work.start(artifact, artifact.source, done.append)
    await until(lambda: bool(done))
    gc.collect()
    assert artifact.fault is not None
    assert (artifact.fault.what, read[0]()) == ("the archive can't be read", None)
