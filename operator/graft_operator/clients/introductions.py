"""Introduces pods to each other: tells those that lack bytes whom to ask, again before their tokens end."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from graft_operator.clients.runtime_client import (
    PodAddress,
    RuntimeClient,
    RuntimeRefusedError,
    RuntimeUnreachableError,
)
from graft_operator.decisions.introductions import RENEW_SECONDS, Introduction
from graft_operator.keys import PoolKey

logger = logging.getLogger(__name__)


@dataclass
class _Told:
    introduction: Introduction
    since: float
    task: asyncio.Task[None]


class Introductions:
    """What pods were told of each other.

    Args:
        clock: seconds that only grow.
    """

    def __init__(self, client: RuntimeClient, clock: Callable[[], float] = time.monotonic) -> None:
        self._client, self._clock = client, clock
        self._told: dict[PoolKey, dict[str, _Told]] = {}

    def make(self, key: PoolKey, wanted: Iterable[Introduction]) -> None:
        """Tell these pods of a pool, unless they were told the same a short while ago; forget all others of it."""
        before, now = self._told.pop(key, {}), self._clock()
        kept: dict[str, _Told] = {}
        for introduction in wanted:
            told = before.get(introduction.pod.uid)
            if told is None or told.introduction.differs(introduction) or told.since + RENEW_SECONDS <= now:
                told = _Told(introduction, now, asyncio.create_task(self._tell(key, introduction)))
            kept[introduction.pod.uid] = told
        for uid, told in before.items():
            if kept.get(uid) is not told:
                told.task.cancel()
        if kept:
            self._told[key] = kept

    async def close(self) -> None:
        """Stop telling; wait until all tasks have ended."""
        tasks = [told.task for pool in self._told.values() for told in pool.values()]
        for key in list(self._told):
            self.make(key, ())
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _tell(self, key: PoolKey, introduction: Introduction) -> None:
        pod = _address(key, introduction.pod.uid, introduction.pod.ip)
        peers = [_address(key, peer.uid, peer.ip) for peer in introduction.peers]
        try:
            await self._client.introduce(pod, peers, introduction.base)
        except (RuntimeUnreachableError, RuntimeRefusedError) as error:
            # Its sources are asked meanwhile; it is told again if it still lacks something later.
            logger.info("the pod at %s was not told of others: %s", pod.ip, error)


def _address(key: PoolKey, uid: str, ip: str | None) -> PodAddress:
    assert ip is not None, "only pods with an address have been heard"
    return PodAddress(uid, ip, key.namespace)
