"""The other pods of the pool, which are asked for what has a digest before its source is, and when its source fails."""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import logging
from collections.abc import Iterator
from functools import partial
from weakref import WeakValueDictionary

from graft_runtime.backoff import Backoff
from graft_runtime.contract.control import Peer, Peers
from graft_runtime.errors import ErrorCode, GraftError
from graft_runtime.store.cache import Cache, Cached
from graft_runtime.store.checkpoints import Kind
from graft_runtime.store.network import AddressGuard, Pace, make_client
from graft_runtime.store.sources.peer import PeerDirectory
from graft_runtime.threads import Threads

logger = logging.getLogger(__name__)

COPIES = 4
"""At once."""
PEER_PACE = Pace(
    silent_seconds=5.0,
    free_seconds=20.0,
    bytes_per_second=1 << 20,
    tries=2,
    pauses=Backoff(first_seconds=0.2, longest_seconds=0.2),
)
"""What a pod of the same cluster must at least deliver; a slower one is given up for the next, or for the source."""
BOOT_SECONDS = 1.0
"""How long a pod that has just started waits to be introduced, before it asks sources for adapters."""
_ANYWHERE = tuple(map(ipaddress.ip_network, ("0.0.0.0/0", "::/0")))
"""The operator alone says which addresses are asked."""


class PeerPods:
    """The other pods as the operator has introduced them. One event loop.

    Args:
        cache: where the checkpoints go.
        pace: what a pod must at least deliver.
    """

    def __init__(self, cache: Cache, pace: Pace = PEER_PACE) -> None:
        self._cache, self._pace = cache, pace
        self._client = make_client(AddressGuard(_ANYWHERE), pace, redirects=0)
        self._threads = Threads(COPIES, "peers")
        self._known: list[Peer] = []
        self._introduced = asyncio.Event()
        self._copying: WeakValueDictionary[str, asyncio.Lock] = WeakValueDictionary()
        self._waiting: set[asyncio.Event] = set()
        self._boot_ends = asyncio.get_running_loop().time() + BOOT_SECONDS
        self.base: str | None = None
        """The digest of the base model that they serve."""

    def introduce(self, peers: Peers) -> None:
        """Know these pods from now on, and no others."""
        self._known, self.base = list(peers.peers), peers.base
        self._introduced.set()
        for waiting in self._waiting:
            waiting.set()

    @contextlib.contextmanager
    def told_of_news(self, event: asyncio.Event) -> Iterator[None]:
        """Set `event` whenever pods are introduced, until the block ends."""
        self._waiting.add(event)
        try:
            yield
        finally:
            self._waiting.discard(event)

    async def first_introduction(self) -> None:
        """Wait until pods are introduced for the first time, but not for longer than a start may wait."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout_at(self._boot_ends):
                await self._introduced.wait()

    async def fetch(self, digest: str, kind: Kind) -> Cached | None:
        """Copy a checkpoint from the first of the pods that has it; None where none has."""
        async with self._copying.setdefault(digest, asyncio.Lock()):
            for peer in tuple(self._known):
                try:
                    return await self._threads.run(partial(self._copy, peer, digest, kind))
                except GraftError as error:
                    self._judge(peer, error)
        return self._cache.find(digest)

    def close(self) -> None:
        """Break off what is read from other pods."""
        self._client.close()

    def _copy(self, peer: Peer, digest: str, kind: Kind) -> Cached:
        if (cached := self._cache.look(digest)) is not None:
            return cached
        cached = self._cache.take(PeerDirectory(self._client, peer, digest, self._pace), kind, digest)
        logger.info("%s came from the pod at %s", digest, peer.address)
        return cached

    def _judge(self, peer: Peer, error: GraftError) -> None:
        """Ask a pod no more, until it is introduced again, that refuses us, is too slow or sends what it should not."""
        if error.code is ErrorCode.NOT_FOUND:
            return
        logger.info("the pod at %s is asked for no checkpoints until it is introduced again: %s", peer.address, error)
        if peer in self._known:
            self._known.remove(peer)
