"""One pod: its base model, its adapters, its engine, and what is true of them."""

from __future__ import annotations

import asyncio
import logging
import time
import uuid
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from graft_runtime.adapters.vocabulary import vocabulary_fault
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.checkpoints import Source
from graft_runtime.contract.config import RuntimeConfig
from graft_runtime.contract.control import AdapterInspection, Check
from graft_runtime.contract.status import AdapterReport, BaseReport, BaseState, RuntimeStatus
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.inspection import inspect_adapter, passed, refused
from graft_runtime.messages import (
    BaseFailed,
    BaseLoaded,
    Dropped,
    Event,
    Mounted,
    MountFailed,
    Start,
    StepDone,
    Unmounted,
)
from graft_runtime.pod.adapter_sets import AdapterSets
from graft_runtime.pod.catalogue import is_settled
from graft_runtime.pod.engine_client import EngineClient
from graft_runtime.pod.leases import Lease
from graft_runtime.pod.merging import Merge
from graft_runtime.pod.metrics import Metrics
from graft_runtime.pod.residency import Residency
from graft_runtime.pod.status_board import StatusBoard
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.fetches import TRANSIENT, Fetches
from graft_runtime.store.network import Network
from graft_runtime.store.sources import Sources
from graft_runtime.tokenizing.files import TOKENIZER_FILE
from graft_runtime.tokenizing.manner import over, read_manner
from graft_runtime.tokenizing.tokenizer import prepare_conversion
from graft_runtime.tokenizing.voices import BaseVoice, Voice, Voices, load_base_voice

logger = logging.getLogger(__name__)

FOLLOW_MOUNTED_SECONDS = 10.0
UNDER_WAY = TRANSIENT | {ErrorCode.RESOLVING}
"""Faults with which the base is still on its way."""


@dataclass(frozen=True)
class Places:
    """Where things are in this pod."""

    adapter_set: Path
    keys: Path
    cache: Path
    state: Path
    sources: Mapping[str, Path]
    """The mounts of declared sources, by name."""
    allowed_networks: tuple[Network, ...] = ()
    """Beside the public ones: where sources may be."""


@dataclass(frozen=True)
class LoadedBase:
    """The base model once it serves."""

    loaded: BaseLoaded
    voice: Voice


class Pod:
    """The life of one pod's runtime on one event loop.

    Args:
        config: what it was born with.
        places: its directories.
        uid: of the pod, the audience of control tokens.
    """

    def __init__(self, config: RuntimeConfig, places: Places, uid: str) -> None:
        self.config, self.places, self.uid = config, places, uid
        self.boot_id = uuid.uuid4().hex
        self.config_hash = config.config_hash()
        self.metrics = Metrics()
        self.engine = EngineClient(self._heard)
        self._base_digest: str | None = None
        self._base_revision = config.base_model.source.revision
        self._cache = Cache(places.cache, config.cache_bytes, self._digests_in_use)
        self.fetches = Fetches(Sources(config.sources, places.sources, places.allowed_networks), self._cache)
        self._voices = Voices()
        self.adapters = Residency(
            self.fetches,
            self.engine.send,
            self._highest_token,
            limit=config.engine.max_mounted_adapters,
            max_rank=config.engine.max_rank,
            drain_seconds=config.drain_seconds,
            changed=self._changed,
        )
        self.merge = Merge(config.merge, self.fetches, config.engine.max_rank, self._changed) if config.merge else None
        """None: hot mode. Else the adapters of the set are in the base's weights, and `adapters` stays empty."""
        self._sets = AdapterSets(config.pool_uid, self.config_hash, places.adapter_set, places.state)
        self._sets_lock = asyncio.Lock()
        self.base: LoadedBase | None = None
        self._base_state = BaseState.FETCHING
        self._base_fault: GraftError | None = None
        self._loaded: asyncio.Future[BaseLoaded] = asyncio.get_running_loop().create_future()
        self._serving_since = 0.0
        self._was_ready = False
        self._dirty: dict[str, None] = {}
        self.leaving = False
        """SIGTERM came: unready, but still serving."""
        self.refusing = False
        """New requests are turned away."""
        self.board = StatusBoard(self._head, self.report)

    # life

    async def run(self) -> None:
        """Boots, and follows the mounted set from then on. Raises what is a fault of ours."""
        loading = asyncio.create_task(self._load_base())  # first in the queue of copies
        boot = await asyncio.to_thread(self._sets.boot)
        if boot is not None:
            self._put_in_force(boot)
        await asyncio.gather(loading, self._follow_mounted_set())

    async def _load_base(self) -> None:
        base = self.config.base_model
        cached = await self.fetches.fetch_until_there(base.source, "model", base.digest, base.name, self._base_failed)
        if cached is None:
            return
        self._base_digest = cached.digest
        self._base_revision = cached.revision or self._base_revision
        merge = await self.merge.ready(self._base_failed) if self.merge is not None else ()
        await self.engine.spawned.wait()
        self._set_base(BaseState.LOADING, None)
        engine = self.config.engine
        self.engine.send(
            Start(
                directory=str(cached.directory),
                name=base.name,
                dtype=base.dtype,
                max_sequences=engine.max_sequences,
                max_sequence_length=engine.max_sequence_length,
                max_mounted_adapters=engine.max_mounted_adapters,
                max_rank=engine.max_rank,
                merge=merge,
                task=base.task,
            )
        )
        try:
            voice = await self._load_voice(cached)
            loaded = await self._loaded
        except GraftError as error:
            logger.critical("%s", error)
            self._set_base(BaseState.FAILED, error)
            if self.merge is not None:
                self.merge.failed(error)
            return
        self.base = LoadedBase(loaded, voice.voice)
        self._voices.base_loaded(voice)
        self._serving_since = time.monotonic()
        logger.info("`%s` serves: %d parameters in %s", self.config.served_name, loaded.parameter_count, loaded.dtype)
        self.adapters.base_loaded(loaded.vocabulary_size)
        if self.merge is not None:
            self.merge.done(loaded.remapped)
        self._set_base(BaseState.SERVING, None)
        asyncio.get_running_loop().call_later(self.config.adapter_startup_seconds + 0.01, self.board.touch_head)

    async def _load_voice(self, cached: Cached) -> BaseVoice:
        directory = cached.directory
        if not (directory / TOKENIZER_FILE).exists():
            directory = self.places.cache / "tokenizers" / cached.digest.removeprefix("sha256:")
            if not (directory / TOKENIZER_FILE).exists():
                await asyncio.to_thread(prepare_conversion, cached.directory, directory)
                await self.engine.convert_tokenizer(str(cached.directory), str(directory / TOKENIZER_FILE))
        base = await asyncio.to_thread(load_base_voice, directory, cached.directory)
        tokenizer, manner = base.voice.tokenizer, base.voice.manner
        for merged in reversed(self.merge.directories if self.merge is not None else ()):
            manner = over(await asyncio.to_thread(read_manner, merged, tokenizer.token_id, "the merge"), manner)
        return replace(base, voice=Voice(tokenizer, manner))

    def _base_failed(self, error: GraftError) -> None:
        self._set_base(BaseState.FETCHING if error.code in UNDER_WAY else BaseState.FAILED, error)

    def _set_base(self, state: BaseState, fault: GraftError | None) -> None:
        self._base_state, self._base_fault = state, fault
        self.board.touch_head()

    async def _follow_mounted_set(self) -> None:
        """A pod whose ConfigMap came late, or that nobody reaches, still gets what is mounted."""
        while True:
            await asyncio.sleep(FOLLOW_MOUNTED_SECONDS)
            async with self._sets_lock:
                newer = await asyncio.to_thread(self._sets.follow_mounted)
                if newer is not None:
                    self._put_in_force(newer)

    def leave(self) -> None:
        """Unready from now on, for good."""
        self.leaving = True
        self.board.touch_head()

    async def close(self) -> None:
        """Lets go of whoever polls, and of copies under way."""
        self.board.close()
        await self.fetches.close()

    # adapter sets

    async def accept(self, adapter_set: AdapterSet) -> AdapterSetVersion:
        """Puts a pushed set in force; it is kept before this returns.

        Raises:
            GraftError: WrongPool, StaleGeneration.
        """
        async with self._sets_lock:
            if await asyncio.to_thread(self._sets.accept, adapter_set):
                self._put_in_force(adapter_set)
            return self._sets.version

    def _put_in_force(self, adapter_set: AdapterSet) -> None:
        logger.info("adapter set %d with %d adapters", adapter_set.generation, len(adapter_set.adapters))
        (self.adapters if self.merge is None else self.merge).apply(adapter_set)
        self.board.touch_head()

    # what requests need

    def serving_base(self) -> LoadedBase:
        """Raises GraftError: NotReady."""
        if self.base is None:
            why = f": {self._base_fault.what}" if self._base_fault is not None else ""
            raise GraftError(ErrorCode.NOT_READY, f"the base model is not loaded yet{why}", hint="try again")
        return self.base

    async def voice(self, lease: Lease | None) -> Voice:
        """How an adapter, or the base (None), wants to be talked to."""
        if lease is None:
            return self.serving_base().voice
        cached = lease.artifact.cached
        assert cached is not None, "what is mounted was read from there"
        return await self._voices.of(lease.digest, cached.directory, lease.artifact.name)

    async def _highest_token(self, cached: Cached, name: str) -> int | None:
        """Of an adapter's own tokenizer, once it is checked. Raises GraftError."""
        return (await self._voices.of(cached.digest, cached.directory, name)).highest_token

    async def inspect(self, source: Source) -> AdapterInspection:
        """A dry run: fetches an adapter and does all that comes before a mount.

        Raises:
            GraftError: what `Fetches.resolve` raises.
        """
        cached = await self.fetches.resolve(source, "adapter")
        found = await asyncio.to_thread(
            inspect_adapter, cached.directory, name=source.uri, max_rank=self.config.engine.max_rank
        )
        if found.fault is not None:
            return found
        await self.engine.spawned.wait()
        try:
            inspected = await self.engine.inspect(str(cached.directory), source.uri)
            found = passed(found, Check.BASE, Check.VALUES).model_copy(update={"remapped": inspected.remapped})
            base = self.serving_base()  # a tokenizer is judged beside its base's
            highest = await self._highest_token(cached, source.uri)
        except GraftError as error:
            return refused(found, error)
        fault = vocabulary_fault(source.uri, highest, inspected.vocabulary_size, base.loaded.vocabulary_size)
        return passed(found, Check.TOKENIZER) if fault is None else refused(found, fault)

    # what is true

    def report(self, name: str) -> AdapterReport | None:
        """What is true of an adapter; None where there is none of this name."""
        return (self.adapters if self.merge is None else self.merge).report(name)

    def adapter_names(self) -> Iterator[str]:
        """Of the adapters that this pod knows, in the order of the catalogue or the merge."""
        return (self.adapters if self.merge is None else self.merge).names()

    @property
    def ready(self) -> bool:
        """Whether this pod takes requests. Once it did, only its end takes that away."""
        self._was_ready = self._was_ready or self._is_complete()
        return self._was_ready and not self.leaving

    def _is_complete(self) -> bool:
        if self.base is None:
            return False
        if time.monotonic() - self._serving_since >= self.config.adapter_startup_seconds:
            return True
        current = self._sets.current
        if current is None:
            return False
        reports = ((entry, self.report(entry.name)) for entry in current.adapters if entry.inline)
        return all(report is not None and is_settled(report, pinned=entry.pinned) for entry, report in reports)

    @property
    def started(self) -> bool:
        """Whether the base serves, or never will: restarting this pod would not help."""
        return self._base_state in {BaseState.SERVING, BaseState.FAILED}

    def _head(self) -> RuntimeStatus:
        fault = self._base_fault
        return RuntimeStatus(
            boot_id=self.boot_id,
            sequence=0,
            pool_uid=self.config.pool_uid,
            config_hash=self.config_hash,
            ready=self.ready,
            base=BaseReport(
                name=self.config.base_model.name,
                state=self._base_state,
                digest=self._base_digest,
                revision=self._base_revision,
                fault=Fault.of(fault) if fault is not None else None,
                runner=self.base.loaded.runner if self.base is not None else None,
                merge=self.merge.merged if self.merge is not None else None,
            ),
            adapter_set=self._sets.version,
        )

    def _changed(self, name: str) -> None:
        """Many names change at once: they are told together."""
        if not self._dirty:
            asyncio.get_running_loop().call_soon(self._tell_changes)
        self._dirty[name] = None

    def _tell_changes(self) -> None:
        names, self._dirty = self._dirty, {}
        for name in names:
            self.board.touch(name)
        self.board.touch_head()

    def _digests_in_use(self) -> frozenset[str]:
        merged = self.merge.digests if self.merge is not None else frozenset()
        return self.adapters.digests | merged | ({self._base_digest} if self._base_digest else set())

    def _heard(self, event: Event) -> None:
        match event:
            case StepDone():
                self.metrics.step_seconds.observe(event.seconds)
            case BaseLoaded() if not self._loaded.done():
                self._loaded.set_result(event)
            case BaseFailed() if not self._loaded.done():
                self._loaded.set_exception(event.fault.error())
            case Mounted() | MountFailed() | Unmounted() | Dropped():
                self._count_evictions(event)
                self.adapters.on_event(event)

    def _count_evictions(self, event: Mounted | MountFailed | Unmounted | Dropped) -> None:
        if isinstance(event, Dropped):
            self.metrics.adapter_evictions.labels("host").inc(len(event.digests))
        elif isinstance(event, Unmounted) and event.tier is not None:
            self.metrics.adapter_evictions.labels("device").inc()
