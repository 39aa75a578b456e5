"""The queue: bursts coalesce, one pass a key at a time, retries back off. Time is an argument."""

from __future__ import annotations

import asyncio
from typing import TypeVar

import pytest
from graft_operator.keys import PoolKey
from graft_operator.loop.queue import COALESCE_SECONDS, RETRIES, WorkQueue
from graft_operator.loop.store import Store

Key = TypeVar("Key")


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def queue(clock: Clock) -> WorkQueue[str]:
    return WorkQueue(clock)


async def taken(queue: WorkQueue[Key]) -> Key | None:
    """What can be taken at this moment."""
    waiting = asyncio.ensure_future(queue.take())
    for _ in range(3):
        await asyncio.sleep(0)
    if waiting.done():
        return waiting.result()
    waiting.cancel()
    await asyncio.gather(waiting, return_exceptions=True)
    return None


async def several(queue: WorkQueue[str], count: int) -> list[str | None]:
    """What can be taken at this moment, one after the other."""
    found: list[str | None] = []
    for _ in range(count):
        key = await taken(queue)
        found.append(key)
    return found


async def test_a_burst_becomes_one_pass(queue: WorkQueue[str], clock: Clock) -> None:
    for _ in range(5):
        queue.mark("a")
        clock.now += COALESCE_SECONDS / 10
    assert await taken(queue) is None
    clock.now += COALESCE_SECONDS
    assert await taken(queue) == "a"
    queue.done("a")
    assert await taken(queue) is None


async def test_bursts_about_two_pools_become_one_pass_each() -> None:
    clock = Clock()
    queue: WorkQueue[PoolKey] = WorkQueue(clock)
    store = Store(queue.mark)
    for version in range(1, 21):
        for name in ("a", "b"):
            labels = {"graft.dev/deployment": name}
            metadata = {"namespace": "team", "name": f"{name}-0", "uid": name, "resourceVersion": str(version)}
            store.put("Pod", {"metadata": {**metadata, "labels": labels}})
        clock.now += COALESCE_SECONDS / 40
    clock.now += COALESCE_SECONDS
    keys = [await taken(queue), await taken(queue)]
    assert {key.name for key in keys if key is not None} == {"a", "b"}
    for key in keys:
        assert key is not None
        queue.done(key)
    assert await taken(queue) is None


async def test_a_later_mark_does_not_postpone_an_earlier_one(queue: WorkQueue[str], clock: Clock) -> None:
    queue.mark("a")
    queue.mark("a", after=300)
    clock.now += COALESCE_SECONDS
    assert await taken(queue) == "a"


async def test_an_earlier_mark_moves_a_later_one_forward(queue: WorkQueue[str], clock: Clock) -> None:
    queue.mark("a", after=300)
    queue.mark("a")
    clock.now += COALESCE_SECONDS
    assert await taken(queue) == "a"
    queue.done("a")
    clock.now += 300
    assert await taken(queue) is None


async def test_one_pass_a_key_and_the_mark_of_meanwhile_is_kept(queue: WorkQueue[str], clock: Clock) -> None:
    queue.mark("a")
    clock.now += 1
    assert await taken(queue) == "a"
    queue.mark("a")
    queue.mark("b")
    clock.now += 1
    assert await taken(queue) == "b"
    assert await taken(queue) is None
    queue.done("a")
    assert await taken(queue) == "a"


async def test_failures_back_off_until_a_success(queue: WorkQueue[str]) -> None:
    waits = [queue.retry("a") for _ in range(12)]
    assert waits[:3] == [RETRIES.first_seconds, 2 * RETRIES.first_seconds, 4 * RETRIES.first_seconds]
    assert waits[-1] == RETRIES.longest_seconds
    queue.succeeded("a")
    assert queue.retry("a") == RETRIES.first_seconds


async def test_a_waiting_worker_wakes_up() -> None:
    queue: WorkQueue[str] = WorkQueue()
    waiting = asyncio.ensure_future(queue.take())
    await asyncio.sleep(0)
    queue.mark("a", after=0)
    assert await asyncio.wait_for(waiting, 1) == "a"


async def test_a_group_with_many_keys_keeps_no_other_waiting(clock: Clock) -> None:
    queue = WorkQueue[str](clock, group=lambda key: key.partition("/")[0])
    for number in range(100):
        queue.mark(f"many/{number}")
    clock.now += 1
    assert await taken(queue) == "many/0"
    queue.mark("few/0", after=0)
    queue.mark("few/1", after=0)
    assert await several(queue, 4) == ["many/1", "few/0", "many/2", "few/1"]


async def test_a_group_leaves_workers_for_the_others(clock: Clock) -> None:
    queue = WorkQueue[str](clock, group=lambda key: key.partition("/")[0], share=2)
    for number in range(3):
        queue.mark(f"many/{number}", after=0)
    assert await several(queue, 3) == ["many/0", "many/1", None]
    queue.mark("few/0", after=0)
    assert await taken(queue) == "few/0"
    waiting = asyncio.ensure_future(queue.take())
    await asyncio.sleep(0)
    queue.done("many/0")
    assert await asyncio.wait_for(waiting, 1) == "many/2"


async def test_what_is_due_and_marked_again_is_taken_once(clock: Clock) -> None:
    queue = WorkQueue[str](clock, share=1)
    queue.mark("a", after=0)
    queue.mark("b", after=0)
    assert await taken(queue) == "a"
    assert await taken(queue) is None
    queue.mark("b", after=0)
    queue.mark("b")
    queue.done("a")
    assert await taken(queue) == "b"
    queue.done("b")
    clock.now += 1
    assert await taken(queue) is None


async def test_a_retry_is_taken_once(clock: Clock) -> None:
    queue = WorkQueue[str](clock)
    queue.mark("a", after=0)
    assert await taken(queue) == "a"
    queue.retry("a")
    queue.done("a")
    clock.now += RETRIES.first_seconds
    queue.mark("b", after=0)
    assert await several(queue, 3) == ["a", "b", None]
