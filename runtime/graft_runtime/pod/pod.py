"""One pod: its parts put together, its life, and what it reports."""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from graft_runtime.contract.adapter_set import AdapterSet
from graft_runtime.contract.config import RuntimeConfig
from graft_runtime.contract.status import AdapterReport, RuntimeStatus
from graft_runtime.messages import BaseFailed, BaseLoaded, Dropped, Event, Mounted, MountFailed, StepDone, Unmounted
from graft_runtime.pod.adapters import Adapters
from graft_runtime.pod.base_life import BaseLife
from graft_runtime.pod.dry_run import DryRun
from graft_runtime.pod.engine_client import EngineClient
from graft_runtime.pod.engine_port import EnginePort
from graft_runtime.pod.hot import HotAdapters
from graft_runtime.pod.merged import MergedAdapters
from graft_runtime.pod.metrics import Metrics
from graft_runtime.pod.mounting import Mounting
from graft_runtime.pod.preparations import Preparations
from graft_runtime.pod.readiness import Readiness
from graft_runtime.pod.sets import AdapterSets, SetInForce
from graft_runtime.pod.status_board import StatusBoard
from graft_runtime.pod.vllm_metrics import Load
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.fetches import Fetches
from graft_runtime.store.in_place import InPlaceCheckpoints
from graft_runtime.store.network import Network
from graft_runtime.store.peers import PeerPods
from graft_runtime.store.sources import Sources
from graft_runtime.tokenizing.text_formats import TextFormats

logger = logging.getLogger(__name__)


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
    api_keys: Path | None = None
    """The Secret with the keys of clients; None: the API asks for none."""
    shared_cache: Path | None = None
    """The cache for checkpoints that the pool's pods share; None: they go into this pod's own."""
    cache_bytes: int | None = None
    """The most that the cache may hold, where the config says nothing; None: what the disk holds."""
    adapter_bytes: int | None = None
    """The most that the files of one adapter may have, where the config says nothing."""
    allowed_hosts: tuple[str, ...] = ()
    """Which ones may be asked; empty for any."""
    page: bool = True
    """The API's port has a page for people at `/`."""


class Pod:
    """One pod's runtime on one event loop.

    Args:
        config: what it was born with.
        places: its directories.
        uid: of the pod, the audience of control tokens.
        engine: that runs the base model and the adapters.
    """

    def __init__(self, config: RuntimeConfig, places: Places, uid: str, engine: EnginePort) -> None:
        self.config, self.places, self.uid = config, places, uid
        self.boot_id, self._config_hash = uuid.uuid4().hex, config.config_hash()
        self.metrics = Metrics(config.served_name)
        self.board = StatusBoard(self._head, self._report)
        self.engine = EngineClient(engine, self._heard)
        cache = Cache(
            places.shared_cache or places.cache,
            config.cache_bytes or places.cache_bytes,
            self.digests_in_use,
            adapter_bytes=config.adapter_bytes or places.adapter_bytes,
            pod=uid if places.shared_cache else None,
        )
        sources = Sources(config.sources, places.sources, places.allowed_networks, allowed_hosts=places.allowed_hosts)
        self.cache, self.peers = cache, PeerPods(cache)
        self.fetches = Fetches(sources, cache, self.peers)
        self._in_place = InPlaceCheckpoints(places.cache / "in-place", sources)
        self._text_formats = TextFormats()
        self.adapters = self._open_adapters()
        self.base = BaseLife(
            config,
            self.fetches,
            self.engine,
            self.adapters,
            self._text_formats,
            tokenizers=places.cache / "tokenizers",
            in_place=self._in_place,
            changed=self.board.touch_head,
        )
        kept = AdapterSets(config.pool_uid, self._config_hash, places.adapter_set, places.state)
        self.sets = SetInForce(kept, self._put_in_force)
        self._readiness = Readiness(self.base, self.adapters, kept, config.adapter_startup_seconds)
        self.dry_run = DryRun(self.fetches, self.base, self._highest_token, config.engine.max_rank)

    def _open_adapters(self) -> Adapters:
        """Choose between hot and merged mode: nothing asks for the mode after this."""
        config, engine = self.config, self.config.engine
        if config.merge:
            return MergedAdapters(config.merge, self.fetches, engine.max_rank, self.board.changed)
        preparations = Preparations(self.fetches, self._highest_token, engine.max_rank)
        mounting = Mounting(preparations, self.engine.send, engine.max_mounted_adapters)
        return HotAdapters(mounting, config.drain_seconds, self.board.changed)

    async def run(self) -> None:
        """Boot, and follow the mounted set from then on. Raises what is a fault of ours."""
        loading = asyncio.create_task(self._load_base())  # first in the queue of copies
        pruning = asyncio.create_task(asyncio.to_thread(self.cache.prune))
        await self.sets.boot()
        await asyncio.gather(loading, pruning, self.sets.follow_mounted())

    async def _load_base(self) -> None:
        await self.base.load()
        asyncio.get_running_loop().call_later(self.config.adapter_startup_seconds + 0.01, self.board.touch_head)
        await self.base.watch()

    def leave(self) -> None:
        """Be unready from now on, for good."""
        self._readiness.leaving = True
        self.board.touch_head()

    async def close(self) -> None:
        """Let go of whoever polls, of copies under way, and of weights that are read in place."""
        self.board.close()
        await self.fetches.close()
        self._in_place.close()

    def load(self, asked: Sequence[str]) -> Load:
        """Return what this pod is doing. `asked`: the names of requests under way."""
        adapters = [name for name in asked if name != self.config.served_name]
        mounted = [name for name in adapters if self.adapters.tier(name) == "device"]
        return Load(
            self.engine.occupancy,
            self.base.capacity_tokens,
            self.config.engine.max_mounted_adapters,
            mounted,
            [name for name in adapters if name not in mounted],
        )

    @property
    def leaving(self) -> bool:
        """Tell whether this pod is about to end."""
        return self._readiness.leaving

    @property
    def ready(self) -> bool:
        """Tell whether this pod takes requests."""
        return self._readiness.ready

    def _head(self) -> RuntimeStatus:
        return RuntimeStatus(
            boot_id=self.boot_id,
            sequence=0,
            pool_uid=self.config.pool_uid,
            config_hash=self._config_hash,
            ready=self.ready,
            base=self.base.report(),
            adapter_set=self.sets.version,
        )

    def _report(self, name: str) -> AdapterReport | None:
        return self.adapters.report(name)

    def _put_in_force(self, adapter_set: AdapterSet) -> None:
        logger.info("adapter set %d with %d adapters", adapter_set.generation, len(adapter_set.adapters))
        self.adapters.apply(adapter_set)
        self.board.touch_head()

    async def _highest_token(self, cached: Cached, name: str) -> int | None:
        """Return the highest token id of an adapter's own tokenizer, once that is checked. Raises GraftError."""
        return (await self._text_formats.of(cached.digest, cached.directory, name)).highest_token

    def digests_in_use(self) -> frozenset[str]:
        """Return the digests that this pod needs. Called by other threads as well."""
        return self.adapters.digests | ({self.base.digest} if self.base.digest else set())

    def _heard(self, event: Event) -> None:
        match event:
            case StepDone():
                self.metrics.step_seconds.observe(event.seconds)
            case BaseLoaded() | BaseFailed():
                self.base.on_event(event)
            case Mounted() | MountFailed() | Unmounted() | Dropped():
                self.metrics.count_evictions(event)
                self.adapters.on_event(event)
