"""Follows the pods: long-polls the status of each, and pushes the newest adapter set to each, one at a time.

A pod that hangs holds up nothing but its own two tasks.
"""

from __future__ import annotations

import asyncio
import logging
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace

from graft_runtime.backoff import Backoff
from graft_runtime.contract.adapter_set import AdapterSet, AdapterSetVersion
from graft_runtime.contract.status import RuntimeStatus

from graft_operator.clients.runtime_client import (
    POLL_SECONDS,
    OtherVersionError,
    PodAddress,
    RuntimeClient,
    RuntimeRefusedError,
    RuntimeUnreachableError,
)
from graft_operator.clients.shares import Room
from graft_operator.decisions.observed import PodReport, PodView
from graft_operator.keys import PoolKey

logger = logging.getLogger(__name__)


BACKOFF = Backoff(first_seconds=0.2, longest_seconds=3.0)
MAX_REPORTS = 1024
"""Adapters of one pod that are remembered; those of the spec and some that are being unloaded."""
NAMESPACE_BYTES = 64 * 2**20
"""Of the reports of one namespace's pods."""


@dataclass(frozen=True)
class FollowerLimits:
    """How patient a follower is."""

    backoff: Backoff = BACKOFF
    """Between failed polls, and between failed pushes."""
    first_answer_seconds: float = 3.0
    """A pod that has not answered by then counts as one that does not."""
    failures_to_forget: int = 3
    """Failed polls in a row after which what the pod reported is forgotten. One is enough if the connection is refused
    or the pod is no longer Ready."""


DEFAULT_LIMITS = FollowerLimits()


def updated(known: RuntimeStatus | None, news: RuntimeStatus) -> RuntimeStatus:
    """Return the whole status: `news` holds only the adapters that changed since `known`, or all after a new boot."""
    adapters = {report.name: report for report in news.adapters}
    if known is not None and known.boot_id == news.boot_id:
        adapters = {report.name: report for report in known.adapters} | adapters
    kept = tuple(adapters[name] for name in sorted(adapters) if not adapters[name].removed)[:MAX_REPORTS]
    return news.model_copy(update={"adapters": kept})


class PodFollower:
    """One pod.

    Args:
        changed: called whenever `report` is another one.
        room: for what the pods of each namespace report.
    """

    def __init__(
        self,
        client: RuntimeClient,
        address: PodAddress,
        changed: Callable[[], None],
        limits: FollowerLimits = DEFAULT_LIMITS,
        room: Room | None = None,
    ) -> None:
        self._room = room or Room(NAMESPACE_BYTES)
        self._size = 0
        self.address = address
        self.report = PodReport()
        self._client = client
        self._changed = changed
        self._limits = limits
        self._nudged = asyncio.Event()
        self._target: AdapterSet | None = None
        self._pushing: asyncio.Task[None] | None = None
        self._was_ready = False
        self._version = ""
        self._polling = self._start_polling()
        self._first = asyncio.get_running_loop().call_later(limits.first_answer_seconds, self._give_up_waiting)

    def stop(self) -> list[asyncio.Task[None]]:
        """Cancel everything; return the tasks to wait for."""
        self._first.cancel()
        self._remember(None)
        tasks = [task for task in (self._polling, self._pushing) if task is not None]
        for task in tasks:
            task.cancel()
        return tasks

    def see(self, *, ready: bool, version: str) -> None:
        """Take note of the pod's object, and probe the pod at once if it changed.

        A pod that just became unready may hang: its long poll is dropped. Of any other, a back-off ends.

        Args:
            version: the resourceVersion.
        """
        if self._was_ready and not ready:
            self._polling.cancel()
            self._polling = self._start_polling(doubted=True)
        elif version != self._version:
            self._nudged.set()
        self._was_ready, self._version = ready, version

    def push(self, adapter_set: AdapterSet) -> None:
        """Bring this set into force; replaces one that still waits."""
        if self._target == adapter_set:
            return
        self._target = adapter_set
        if self._pushing is None or self._pushing.done():
            self._pushing = asyncio.create_task(self._push(), name=f"push {self.address.ip}")

    def _give_up_waiting(self) -> None:
        if not self.report.asked:
            self._set_report(replace(self.report, asked=True, unreachable="no answer yet"))

    def _set_report(self, report: PodReport) -> None:
        if report != self.report:
            self.report = report
            self._changed()

    def _start_polling(self, *, doubted: bool = False) -> asyncio.Task[None]:
        return asyncio.create_task(self._poll(doubted=doubted), name=f"follow {self.address.ip}")

    async def _poll(self, *, doubted: bool) -> None:
        """Poll for ever.

        Args:
            doubted: forget what the pod reported unless it answers at once.
        """
        failures = self._limits.failures_to_forget if doubted else 0
        wait = 0 if doubted else POLL_SECONDS
        while True:
            try:
                known = self.report.status
                boot, since = (known.boot_id, known.sequence) if known else ("", 0)
                news = await self._client.status(self.address, boot, since, wait)
            except OtherVersionError as error:
                failures += 1
                self._not_understood(error)
            except RuntimeUnreachableError as error:
                failures += 1
                self._missed(str(error), forget=error.refused or failures >= self._limits.failures_to_forget)
            except RuntimeRefusedError as error:
                failures += 1
                self._missed(f"HTTP {error.status}: {error}", forget=failures >= self._limits.failures_to_forget)
            else:
                failures, wait = 0, POLL_SECONDS
                self._heard(news)
                continue
            await self._back_off(failures)

    def _heard(self, news: RuntimeStatus | None) -> None:
        status = self.report.status if news is None else updated(self.report.status, news)
        if self._remember(status):
            self._set_report(PodReport(status=status, asked=True))
        else:
            self._missed("the pods of this namespace report more than the operator remembers", forget=True)

    def _missed(self, why: str, *, forget: bool) -> None:
        if forget:
            self._remember(None)
        kept = PodReport() if forget else self.report
        self._set_report(replace(kept, asked=True, unreachable=why))

    def _remember(self, status: RuntimeStatus | None) -> bool:
        """Take room for a report in place of the last one; return whether there is any."""
        self._room.give(self.address.namespace, self._size)
        size = 0 if status is None else len(status.model_dump_json())
        taken = self._room.take(self.address.namespace, size)
        self._size = size if taken else 0
        return taken

    def _not_understood(self, error: OtherVersionError) -> None:
        if self.report.fault != error.fault:
            logger.warning("pod %s: %s", self.address.ip, error)
        self._set_report(PodReport(asked=True, unreachable=str(error), fault=error.fault))

    async def _back_off(self, failures: int) -> None:
        self._nudged.clear()
        try:
            async with asyncio.timeout(self._limits.backoff.seconds(failures)):
                await self._nudged.wait()
        except TimeoutError:
            return

    async def _push(self) -> None:
        failures = 0
        while (target := self._target) is not None:
            try:
                accepted = await self._client.push(self.address, target)
            except RuntimeRefusedError as error:
                # It has a newer one, or can't take this one: its status tells, and the next pass decides anew.
                logger.warning("pod %s refused adapter set %d: %s", self.address.ip, target.generation, error)
                failures += 1
                self._target = None
                self._changed()
                await self._back_off(failures)
            except RuntimeUnreachableError as error:
                failures += 1
                logger.info("adapter set %d did not reach %s: %s", target.generation, self.address.ip, error)
                await self._back_off(failures)
            else:
                failures = 0
                self._in_force(accepted.boot_id, accepted.adapter_set)
                if self._target == target:
                    self._target = None

    def _in_force(self, boot_id: str, version: AdapterSetVersion) -> None:
        status = self.report.status
        if status is not None and status.boot_id == boot_id:
            self._set_report(replace(self.report, status=status.model_copy(update={"adapter_set": version})))


class PodFollowers:
    """The followers of all pods.

    Args:
        mark: called with the key of the pool of which a pod reports something new.
    """

    def __init__(self, client: RuntimeClient, mark: Callable[[PoolKey], None]) -> None:
        self._client = client
        self._mark = mark
        self._room = Room(NAMESPACE_BYTES)
        self._followers: dict[PoolKey, dict[str, PodFollower]] = defaultdict(dict)
        self._ending: set[asyncio.Task[None]] = set()

    def follow(self, key: PoolKey, pods: Iterable[PodView]) -> None:
        """Follow exactly these pods of the pool."""
        wanted = {
            PodAddress(pod.uid, pod.ip, key.namespace): pod for pod in pods if pod.ip is not None and not pod.ended
        }
        followers = self._followers[key]
        for uid in [uid for uid, follower in followers.items() if follower.address not in wanted]:
            self._stop(followers.pop(uid))
        for address, pod in wanted.items():
            if pod.uid not in followers:
                followers[pod.uid] = PodFollower(self._client, address, lambda: self._mark(key), room=self._room)
            followers[pod.uid].see(ready=pod.ready, version=pod.resource_version)
        if not followers:
            del self._followers[key]

    def reports(self, key: PoolKey) -> Mapping[str, PodReport]:
        """Return pod UID → what the pod reports."""
        return {uid: follower.report for uid, follower in self._followers.get(key, {}).items()}

    def push(self, key: PoolKey, uid: str, adapter_set: AdapterSet) -> None:
        """Bring an adapter set into force on a pod, in the background."""
        follower = self._followers.get(key, {}).get(uid)
        if follower is not None:
            follower.push(adapter_set)

    async def close(self) -> None:
        """Stop following; wait until all tasks have ended."""
        for followers in self._followers.values():
            for follower in followers.values():
                self._stop(follower)
        self._followers.clear()
        await asyncio.gather(*self._ending, return_exceptions=True)

    def _stop(self, follower: PodFollower) -> None:
        for task in follower.stop():
            self._ending.add(task)
            task.add_done_callback(self._ending.discard)
