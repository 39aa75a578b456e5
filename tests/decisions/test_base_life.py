"""The life of a base model with adapters to merge, against an engine that is played by hand."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from graft_runtime.contract.adapter_set import AdapterEntry, AdapterSet
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import BaseModelConfig, Merge, MergePart, RuntimeConfig
from graft_runtime.contract.facts import AdapterFacts, DeltaKind
from graft_runtime.contract.status import AdapterState, BaseState
from graft_runtime.contract.tasks import Task
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseFailed, BaseLoaded, Capabilities, EngineFault, MergeSource, Start
from graft_runtime.pod.base_life import BaseLife
from graft_runtime.pod.merged import MergedAdapters
from graft_runtime.store.cache import Cached
from graft_runtime.tokenizing.defaults import GenerationDefaults
from graft_runtime.tokenizing.text_formats import BaseTextFormat, TextFormat

DIGEST = "sha256:" + "a" * 64
FACTS = AdapterFacts(method="LORA", rank=4, module_count=1, deltas=("LowRank",))
PART = MergePart(name="billing", source=Source(uri="pvc://shelf/billing"), weight=0.5)
MERGE = Merge(name="both", adapters=(PART,))
CONFIG = RuntimeConfig(
    pool_uid="p", base_model=BaseModelConfig(name="base", source=Source(uri="pvc://shelf/base")), merge=MERGE
)
IN_PLACE = CONFIG.model_copy(
    update={"base_model": CONFIG.base_model.model_copy(update={"in_place": True, "digest": DIGEST})}
)
ENGINE = Capabilities(frozenset(DeltaKind), weights=True, adapters_per_request=4)
LOADED = BaseLoaded("decoder", 64, 320, 1, "float32", Task.CAUSAL_LM, ENGINE, (FACTS,))


class Files:
    """What the header checks find in every adapter here."""

    directory, facts, bytes = Path("/adapter"), FACTS, 1


@dataclass(frozen=True)
class InPlace(Cached):
    """Weights that change when `changed` is set."""

    changed: asyncio.Event = field(default_factory=asyncio.Event)

    def check(self) -> None:
        if self.changed.is_set():
            raise GraftError(ErrorCode.DIGEST_MISMATCH, "model.safetensors has changed")


class Fetches:
    """Everything is in the cache already, or lies where it is read."""

    def __init__(self) -> None:
        self.in_place = InPlace(DIGEST, Path("/base"), 1)

    async def open_in_place(self, checkpoints: Any, source: Source, digest: str | None, failed: Any) -> Cached:
        return self.in_place

    async def fetch_until_there(self, source: Source, kind: str, digest: str | None, name: str, failed: Any) -> Cached:
        return Cached(digest or DIGEST, Path("/adapter" if kind == "adapter" else "/base"), 1)


class Engine:
    """Runs from the start; keeps what it was sent."""

    def __init__(self) -> None:
        self.sent: list[Start] = []
        self.was_sent = asyncio.Event()
        self.refusal: GraftError | None = None

    def refuse(self, error: GraftError) -> None:
        self.refusal = error

    async def started(self) -> None:
        pass

    def send(self, start: Start) -> None:
        self.sent.append(start)
        self.was_sent.set()


class TextFormats:
    def base_loaded(self, base: BaseTextFormat) -> None:
        self.base = base


async def converted(source: Path, target: Path) -> None:
    """Nothing has to be done."""


@pytest.fixture(autouse=True)
def no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    tokenizer: Any = type("Tokenizer", (), {"token_id": None})
    nothing: Any = None
    base = BaseTextFormat(TextFormat(tokenizer, GenerationDefaults()), nothing, nothing)
    monkeypatch.setattr("graft_runtime.pod.base_life.load_base_format", lambda *_: base)
    monkeypatch.setattr("graft_runtime.pod.base_life.read_defaults", lambda *_: GenerationDefaults("the adapter's"))
    monkeypatch.setattr("graft_runtime.pod.base_life.convert", converted)
    monkeypatch.setattr("graft_runtime.pod.merged.read_adapter_files", lambda *_, **__: Files)


class Played:
    """A base model to be merged into, up to the Start that the engine was sent."""

    def __init__(self, config: RuntimeConfig = CONFIG) -> None:
        fetches: Any = Fetches()
        in_place: Any = None
        engine: Any = Engine()
        text_formats: Any = TextFormats()
        self.engine: Engine = engine
        self.weights: InPlace = fetches.in_place
        self.adapters = MergedAdapters(MERGE, fetches, 8, lambda _: None)
        self.base = BaseLife(
            config,
            fetches,
            engine,
            self.adapters,
            text_formats,
            tokenizers=Path("/none"),
            in_place=in_place,
            changed=lambda: None,
            retry_seconds=0,
            look_seconds=0,
        )

    async def started(self) -> asyncio.Task[None]:
        loading = asyncio.create_task(self.base.load())
        entry = AdapterEntry(name="billing", source=PART.source, digest=DIGEST)
        self.adapters.apply(AdapterSet(pool_uid="p", config_hash="c", generation=1, adapters=(entry,)))
        async with asyncio.timeout(10):
            await self.engine.was_sent.wait()
        return loading


async def test_the_config_s_own_parts_go_to_the_engine_and_come_back_with_their_digests() -> None:
    played = Played()
    loading = await played.started()
    (start,) = played.engine.sent
    assert start.merge == (MergeSource(PART, "/adapter"),)
    assert start.limits == CONFIG.engine
    played.base.on_event(LOADED)
    await loading
    assert played.base.report().merge == MERGE.model_copy(
        update={"adapters": (PART.model_copy(update={"digest": DIGEST}),)}
    )
    assert played.base.serving().text_format.defaults.chat_template == "the adapter's"
    report = played.adapters.report("billing")
    assert report is not None
    assert (report.state, report.facts) == (AdapterState.MERGED, FACTS)


async def test_a_base_that_failed_in_the_middle_of_a_merge_is_never_served() -> None:
    played = Played()
    loading = await played.started()
    played.base.on_event(BaseFailed(EngineFault(ErrorCode.CORRUPT.value, "not finite")))
    await loading
    played.base.on_event(LOADED)
    status = played.base.report()
    assert (status.state, status.merge) == (BaseState.FAILED, None)
    assert played.base.ended
    with pytest.raises(GraftError, match="not finite"):
        played.base.serving()
    report = played.adapters.report("billing")
    assert report is not None
    assert report.fault is not None
    assert (report.state, report.fault.code) == (AdapterState.FAILED, ErrorCode.CORRUPT)


async def test_without_room_for_the_base_the_process_begins_anew() -> None:
    played = Played()
    loading = await played.started()
    played.base.on_event(BaseFailed(EngineFault(ErrorCode.NO_CAPACITY.value, "needs 2 GiB, has 1 GiB")))
    with pytest.raises(GraftError, match="needs 2 GiB"):
        await loading
    status = played.base.report()
    assert status.fault is not None
    assert (status.state, status.fault.code) == (BaseState.FAILED, ErrorCode.NO_CAPACITY), "told before"
    with pytest.raises(GraftError, match="not loaded yet") as caught:
        played.base.serving()
    assert caught.value.code is ErrorCode.NOT_READY


async def test_a_request_is_told_what_is_wrong_with_a_base_that_failed_for_good() -> None:
    played = Played()
    loading = await played.started()
    played.base.on_event(BaseFailed(EngineFault(ErrorCode.NOT_A_MODEL.value, "no model", hint="name another")))
    await loading
    with pytest.raises(GraftError, match="no model") as caught:
        played.base.serving()
    assert (caught.value.code, caught.value.hint) == (ErrorCode.NOT_A_MODEL, "name another")
    assert "yet" not in caught.value.message


async def test_an_engine_that_fails_while_the_tokenizer_is_tried_again_is_told_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tried = asyncio.Event()

    async def fails(source: Path, target: Path) -> None:
        tried.set()
        raise GraftError(ErrorCode.NO_CAPACITY, "the conversion was killed")

    monkeypatch.setattr("graft_runtime.pod.base_life.convert", fails)
    played = Played()
    loading = await played.started()
    async with asyncio.timeout(10):
        await tried.wait()
        played.base.on_event(BaseFailed(EngineFault(ErrorCode.NOT_A_MODEL.value, "no model")))
        await loading
    with pytest.raises(GraftError, match="no model"):
        played.base.serving()


def fault_of(played: Played) -> tuple[BaseState, ErrorCode | None]:
    status = played.base.report()
    return status.state, status.fault.code if status.fault is not None else None


@pytest.mark.parametrize("answer", [LOADED, BaseFailed(EngineFault(ErrorCode.CORRUPT.value, "half a file"))])
async def test_weights_that_changed_while_they_were_loaded_in_place_never_serve(answer: Any) -> None:
    played = Played(IN_PLACE)
    loading = await played.started()
    played.weights.changed.set()
    played.base.on_event(answer)
    with pytest.raises(GraftError, match="has changed"):
        await loading  # so that another process begins anew, whatever the engine made of it
    assert fault_of(played) == (BaseState.FAILED, ErrorCode.DIGEST_MISMATCH)
    assert played.base.serving_since is None


async def test_weights_that_change_in_place_are_served_no_more() -> None:
    played = Played(IN_PLACE)
    loading = await played.started()
    played.base.on_event(LOADED)
    await loading
    watching = asyncio.create_task(played.base.watch())
    assert played.base.serving()
    played.weights.changed.set()
    with pytest.raises(GraftError, match="has changed"):
        await watching
    assert fault_of(played) == (BaseState.FAILED, ErrorCode.DIGEST_MISMATCH)
    assert played.base.serving_since is None
    with pytest.raises(GraftError, match="has changed") as caught:
        played.base.serving()
    assert caught.value.code is ErrorCode.NOT_READY
    assert played.engine.refusal is not None, "what runs, or is about to, isn't answered either"
    assert played.engine.refusal.code is ErrorCode.NOT_READY


async def test_a_copy_is_not_looked_at_again() -> None:
    played = Played()
    loading = await played.started()
    played.base.on_event(LOADED)
    await loading
    async with asyncio.timeout(10):
        await played.base.watch()
