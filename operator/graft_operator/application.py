"""The whole operator: its rooms put together, started in order, and ended fast."""

from __future__ import annotations

import asyncio
import logging
import secrets
import signal
import socket
from contextlib import AsyncExitStack

from graft_operator.clients.cluster import Cluster, UnavailableError
from graft_operator.clients.elector import Elector
from graft_operator.clients.fence import Fence
from graft_operator.clients.followers import PodFollowers
from graft_operator.clients.introductions import Introductions
from graft_operator.clients.keyring import Keyring
from graft_operator.clients.resolutions import Resolutions
from graft_operator.clients.runtime_client import RuntimeClient
from graft_operator.health import HealthServer
from graft_operator.keys import PoolKey
from graft_operator.loop import handlers
from graft_operator.loop.queue import WorkQueue
from graft_operator.loop.reconcile import Reconciler
from graft_operator.loop.store import Store
from graft_operator.loop.sync import Sync
from graft_operator.settings import Settings

logger = logging.getLogger(__name__)

WORKERS = 16
NAMESPACE_WORKERS = 12
"""That may be at work for one namespace at the same time."""
KOPF_ENDS_SECONDS = 2.0
RETRY_SECONDS = 1.0


class Operator:
    """Stands by until it leads; runs until a signal, or until a part of it ends by itself."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._queue: WorkQueue[PoolKey] = WorkQueue(group=lambda key: key.namespace, share=NAMESPACE_WORKERS)
        self._store = Store(self._queue.mark)
        self._stopping = asyncio.Event()
        self._tasks: list[asyncio.Task[None]] = []
        self._fence = Fence()
        self._elector: Elector | None = None
        self._lease: asyncio.Task[None] | None = None
        self._sync: Sync | None = None
        self._followers: PodFollowers | None = None

    async def run(self) -> None:
        """Serve until a signal.

        Raises:
            LeaseLostError: another operator may lead by now. Exception: what ended a part of the operator.
        """
        self._take_signals()
        async with AsyncExitStack() as stack:
            health = HealthServer(
                self._settings.health_address, self._settings.health_port, alive=self._is_alive, ready=self._is_ready
            )
            stack.push_async_callback(health.close)
            await health.start()
            starting = asyncio.create_task(self._start(stack))
            await _first(starting, self._stopping)
            if not self._stopping.is_set():
                await starting
                await self._serve()
            starting.cancel()
            await asyncio.gather(starting, return_exceptions=True)
        if self._lease is not None and self._lease.done() and not self._lease.cancelled():
            self._lease.result()
        logger.info("ended")

    async def _start(self, stack: AsyncExitStack) -> None:
        settings = self._settings
        await self._lead(stack)
        cluster = await Cluster.connect(self._fence)
        stack.push_async_callback(cluster.close)
        self._cluster = cluster
        keyring = self._keyring = await _open_keyring(cluster, settings)
        client = RuntimeClient(keyring.sign, self._fence)
        stack.push_async_callback(client.close)
        followers = self._followers = PodFollowers(client, self._queue.mark)
        stack.push_async_callback(followers.close)
        resolutions = Resolutions(client, self._queue.mark)
        stack.push_async_callback(resolutions.close)
        introductions = Introductions(client)
        stack.push_async_callback(introductions.close)

        self._sync = Sync(cluster, self._store, settings)
        self._reconciler = Reconciler(
            cluster=cluster,
            store=self._store,
            queue=self._queue,
            followers=followers,
            resolutions=resolutions,
            introductions=introductions,
            keys=keyring.public_keys,
            settings=settings,
        )
        await self._sync.load()
        self._reconciler.expect(self._store.pool_keys())

    async def _lead(self, stack: AsyncExitStack) -> None:
        cluster = await Cluster.connect(counted=False)
        stack.push_async_callback(cluster.close)
        identity = self._settings.identity or f"{socket.gethostname()}-{secrets.token_hex(4)}"
        elector = self._elector = Elector(cluster, self._fence, self._settings, identity)
        stack.push_async_callback(elector.release)
        stack.push_async_callback(self._end_tasks)
        await elector.lead()
        self._lease = asyncio.create_task(elector.keep(), name="lease")
        self._lease.add_done_callback(lambda _: self._stopping.set())
        self._tasks.append(self._lease)

    async def _serve(self) -> None:
        assert self._sync is not None
        self._tasks += [
            *(asyncio.create_task(self._reconciler.work(), name=f"worker {number}") for number in range(WORKERS)),
            asyncio.create_task(self._keyring.watch(self._mark_all), name="keys"),
        ]
        stop_kopf = asyncio.Event()
        watching = asyncio.create_task(
            handlers.watch(
                self._settings,
                access=self._cluster.access,
                feed=self._sync,
                on_started=self._take_signals,
                stop=stop_kopf,
            ),
            name="kopf",
        )
        stopping = asyncio.create_task(self._stopping.wait())
        done, _ = await asyncio.wait({watching, stopping, *self._tasks}, return_when=asyncio.FIRST_COMPLETED)
        # Kopf waits for every task that was made after it: ours end first.
        stopping.cancel()
        await self._end_tasks()
        stop_kopf.set()
        await asyncio.wait({watching}, timeout=KOPF_ENDS_SECONDS)
        watching.cancel()
        await asyncio.gather(watching, stopping, return_exceptions=True)
        for task in done - {stopping}:
            error = task.exception() if not task.cancelled() else None
            raise error or RuntimeError(f"{task.get_name()} ended by itself")

    async def _end_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if self._followers is not None:
            await self._followers.close()

    def _mark_all(self) -> None:
        for key in self._store.pool_keys():
            self._queue.mark(key)

    def _take_signals(self) -> None:
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    def _is_alive(self) -> bool:
        return all(not task.done() for task in self._tasks)

    def _is_ready(self) -> bool:
        if self._elector is not None and self._elector.waits:
            return True
        return self._sync is not None and self._sync.loaded


async def _open_keyring(cluster: Cluster, settings: Settings) -> Keyring:
    """Open the keyring; wait for an API server that is not there yet."""
    while True:
        try:
            return await Keyring.open(cluster, settings)
        except UnavailableError as error:
            logger.warning("the signing key can't be read yet: %s", error)
            await asyncio.sleep(RETRY_SECONDS)


async def _first(task: asyncio.Task[None], event: asyncio.Event) -> None:
    """Wait until either is done."""
    waiting = asyncio.create_task(event.wait())
    await asyncio.wait({task, waiting}, return_when=asyncio.FIRST_COMPLETED)
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
