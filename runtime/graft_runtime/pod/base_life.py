"""The life of a pod's base model: fetched, loaded with what is merged into it, and talked to."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from graft_runtime.base.labels import Labels, read_labels
from graft_runtime.base.pooling import Pooling, read_pooling
from graft_runtime.contract.config import RuntimeConfig
from graft_runtime.contract.status import BaseReport, BaseState
from graft_runtime.contract.tasks import Task
from graft_runtime.contract.wire import Fault
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.messages import BaseFailed, BaseLoaded, MergeSource, Start
from graft_runtime.pod.adapters import Adapters
from graft_runtime.pod.engine_client import EngineClient
from graft_runtime.pod.leases import Lease
from graft_runtime.store.cache import Cached
from graft_runtime.store.fetches import Fetches
from graft_runtime.store.in_place import InPlaceCheckpoints
from graft_runtime.tokenizing.conversion import convert
from graft_runtime.tokenizing.defaults import read_defaults
from graft_runtime.tokenizing.files import TOKENIZER_FILE
from graft_runtime.tokenizing.text_formats import BaseTextFormat, TextFormat, TextFormats, load_base_format

logger = logging.getLogger(__name__)

RETRY_LOAD_SECONDS = 30.0
"""From a load for which there was no room to the end of the process, which starts again."""
RETRY_CONVERSION_SECONDS = 30.0
LOOK_SECONDS = 2.0
"""Between two looks at weights that are read in place: how long changed ones may be served."""


@dataclass(frozen=True)
class LoadedBase:
    """The base model once it serves."""

    cached: Cached
    loaded: BaseLoaded
    text_format: TextFormat
    labels: Labels | None = None
    """Of one that classifies texts."""
    pooling: Pooling | None = None
    """Of one that embeds."""


class BaseLife:
    """The base model of one pod. One event loop.

    Args:
        config: of the pod.
        fetches: bring the base into the cache.
        adapters: those of the pod; told when the base serves, and when it never will.
        text_formats: those of the pod.
        tokenizers: the directory for tokenizers that had to be converted.
        in_place: reads a base where it lies.
        changed: called whenever the report may differ.
    """

    def __init__(
        self,
        config: RuntimeConfig,
        fetches: Fetches,
        engine: EngineClient,
        adapters: Adapters,
        text_formats: TextFormats,
        *,
        tokenizers: Path,
        in_place: InPlaceCheckpoints,
        changed: Callable[[], None],
        retry_seconds: float = RETRY_LOAD_SECONDS,
        look_seconds: float = LOOK_SECONDS,
    ) -> None:
        self._in_place, self._retry_seconds, self._look_seconds = in_place, retry_seconds, look_seconds
        self._config, self._fetches, self._engine, self._adapters = config, fetches, engine, adapters
        self._text_formats, self._tokenizers, self._changed = text_formats, tokenizers, changed
        self._revision = config.base_model.source.revision
        self._state = BaseState.FETCHING
        self._fault: GraftError | None = None
        self._final = False
        """Whether nothing but another process can mend the fault."""
        self._answered: asyncio.Future[BaseLoaded] = asyncio.get_running_loop().create_future()
        self._serving: LoadedBase | None = None
        self.digest: str | None = None
        """Of its checkpoint; None before it is fetched. Read by other threads."""
        self.serving_since: float | None = None
        """Seconds of the event loop's clock; None before it serves, and once it serves no more."""

    @property
    def context_length(self) -> int | None:
        """Return the most tokens of prompt and answer; None before it serves."""
        return None if self._serving is None else self._serving.loaded.context_length

    @property
    def capacity_tokens(self) -> int | None:
        """Return how many tokens keys and values may be kept of; None before it serves."""
        return None if self._serving is None else self._serving.loaded.capacity_tokens

    async def load(self) -> None:
        """Fetch the base, wait for what is to be merged into it, and have the engine load it.

        Raises:
            GraftError: why it can't be loaded now, some time after the status said so; this process has to begin anew.
        """
        cached = await self._fetched()
        if cached is None:
            return
        self.digest, self._revision = cached.digest, cached.revision or self._revision
        merge = await self._adapters.merge_sources(self._not_yet)
        await self._engine.started()
        self._become(BaseState.LOADING)
        self._engine.send(self._start(cached.directory, merge))
        try:
            text_format, loaded = await self._loaded(cached, merge)
            labels, pooling = await asyncio.to_thread(
                _answers_of, cached.directory, loaded.task, self._config.base_model.name
            )
        except GraftError as error:
            await self._fail(error)
            return
        self._serving = LoadedBase(cached, loaded, text_format.text_format, labels, pooling)
        self._text_formats.base_loaded(text_format)
        self.serving_since = asyncio.get_running_loop().time()
        name = self._config.served_name
        weights = f"{loaded.dtype}, linear modules in {loaded.quantization}" if loaded.quantization else loaded.dtype
        logger.info("`%s` serves: %d parameters in %s", name, loaded.parameter_count, weights)
        self._adapters.base_loaded(loaded)
        self._become(BaseState.SERVING)

    async def watch(self) -> None:
        """Look whether weights that are read in place are as they were hashed, as long as they serve.

        Raises:
            GraftError: they are not, some time after the status said so; this process has to begin anew.
        """
        while self._serving is not None and self._config.base_model.in_place:
            await asyncio.sleep(self._look_seconds)
            try:
                await asyncio.to_thread(self._serving.cached.check)
            except GraftError as error:
                self._serving, self.serving_since = None, None
                self._engine.refuse(
                    GraftError(ErrorCode.NOT_READY, f"the base model is gone: {error.what}", hint="try again")
                )
                await self._fail(error)

    async def _fetched(self) -> Cached | None:
        base = self._config.base_model
        if base.in_place:
            return await self._fetches.open_in_place(self._in_place, base.source, base.digest, self._not_yet)
        return await self._fetches.fetch_until_there(base.source, "model", base.digest, base.name, self._not_yet)

    async def _fail(self, error: GraftError) -> None:
        """Tell why the base serves no one. Raises the same again, later, where another process may do better."""
        logger.critical("%s", error)
        self._become(BaseState.FAILED, error)
        self._adapters.base_failed(error)
        # The engine loads once: another process may find memory, or files, that this one did not.
        self._final = not (error.code.passes or error.code is ErrorCode.DIGEST_MISMATCH)
        if not self._final:
            await asyncio.sleep(self._retry_seconds)
            raise error

    async def _loaded(self, cached: Cached, merge: Sequence[MergeSource]) -> tuple[BaseTextFormat, BaseLoaded]:
        """Wait for the tokenizer and the engine. Raises GraftError: of the first of them that has failed."""
        text_format = asyncio.create_task(self._load_text_format(cached, merge))
        both: tuple[asyncio.Future[BaseTextFormat], asyncio.Future[BaseLoaded]] = text_format, self._answered
        try:
            await asyncio.wait(both, return_when=asyncio.FIRST_EXCEPTION)
            await asyncio.to_thread(cached.check)  # first: whatever has failed may have failed by that
            for each in both:
                if each.done():
                    each.result()
            return await text_format, await self._answered
        finally:
            text_format.cancel()

    def on_event(self, event: BaseLoaded | BaseFailed) -> None:
        """Take the engine's answer to Start; the first is final."""
        if self._answered.done():
            return
        if isinstance(event, BaseLoaded):
            self._answered.set_result(event)
        else:
            self._answered.set_exception(event.fault.error())

    def serving(self) -> LoadedBase:
        """Return the base that serves. Raises GraftError: NotReady, or why it never will."""
        if self._serving is None:
            fault = self._fault
            if fault is not None and (self._final or not fault.code.retried):
                raise fault.again()
            why = f": {fault.what}" if fault is not None else ""
            raise GraftError(ErrorCode.NOT_READY, f"the base model is not loaded yet{why}", hint="try again")
        return self._serving

    async def text_format(self, lease: Lease | None) -> TextFormat:
        """Return how an adapter, or the base (None), reads and writes text."""
        if lease is None:
            return self.serving().text_format
        cached = lease.artifact.cached
        assert cached is not None, "what is mounted was read from there"
        return await self._text_formats.of(lease.digest, cached.directory, lease.artifact.name)

    @property
    def ended(self) -> bool:
        """Tell whether the base serves, or never will."""
        return self._state in {BaseState.SERVING, BaseState.FAILED}

    def report(self) -> BaseReport:
        """Return what the status says of it."""
        return BaseReport(
            name=self._config.base_model.name,
            state=self._state,
            source=self._config.base_model.source,
            digest=self.digest,
            revision=self._revision,
            fault=Fault.of(self._fault) if self._fault is not None else None,
            runner=self._serving.loaded.runner if self._serving is not None else None,
            merge=self._adapters.merged,
        )

    def _start(self, directory: Path, merge: tuple[MergeSource, ...]) -> Start:
        base = self._config.base_model
        return Start(
            directory=str(directory),
            name=base.name,
            dtype=base.dtype,
            limits=self._config.engine,
            merge=merge,
            task=base.task,
            quantization=base.quantization,
        )

    async def _load_text_format(self, cached: Cached, merge: Sequence[MergeSource]) -> BaseTextFormat:
        directory = cached.directory
        if not (directory / TOKENIZER_FILE).exists():
            directory = self._tokenizers / cached.digest.removeprefix("sha256:")
            if not (directory / TOKENIZER_FILE).exists():
                await self._convert_tokenizer(cached.directory, directory)
        base = await asyncio.to_thread(load_base_format, directory, cached.directory)
        tokenizer, defaults = base.text_format.tokenizer, base.text_format.defaults
        for part in reversed(merge):
            of_part = await asyncio.to_thread(read_defaults, Path(part.directory), tokenizer.token_id, "the merge")
            defaults = of_part.over(defaults)
        return replace(base, text_format=TextFormat(tokenizer, defaults))

    async def _convert_tokenizer(self, source: Path, target: Path) -> None:
        """Convert a tokenizer, again after a fault that passes by itself. Raises GraftError for any other."""
        while True:
            try:
                return await convert(source, target)
            except GraftError as error:
                if not error.code.passes:
                    raise
                logger.warning("%s", error)
                self._become(BaseState.LOADING, error)
            await asyncio.sleep(RETRY_CONVERSION_SECONDS)

    def _not_yet(self, error: GraftError) -> None:
        self._become(BaseState.FETCHING if error.code.passes else BaseState.FAILED, error)

    def _become(self, state: BaseState, fault: GraftError | None = None) -> None:
        self._state, self._fault = state, fault and fault.again()
        self._changed()


def _answers_of(directory: Path, task: Task, name: str) -> tuple[Labels | None, Pooling | None]:
    """Read what is made of the outputs of a base that makes no text. Blocking. Raises GraftError: NotAModel."""
    labels = read_labels(directory, name) if task is Task.SEQ_CLS else None
    return labels, read_pooling(directory, name) if task is Task.FEATURE_EXTRACTION else None
